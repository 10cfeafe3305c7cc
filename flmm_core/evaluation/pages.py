"""Writes evaluations as a Markdown table, and as an HTML page of the best and worst images."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from pycocotools import mask as coco_mask

from flmm_core.data.samples import Dataset
from flmm_core.drawing.overlay import draw_overlay
from flmm_core.drawing.truth import drawn_phrase, true_answer
from flmm_core.evaluation.cases import ImageCases, extremes
from flmm_core.evaluation.metrics import Figure, figure_cells
from flmm_core.types import GroundedAnswer

SHOWN = 12
"""Number of the best and of the worst images on a page."""
DRAWN_CASES = 8
"""Number of phrases that are drawn on an image."""


def markdown_table(figures: Mapping[str, Figure], published: Mapping[str, Sequence[tuple[str, float]]]) -> str:
    """Measured figures, each with its interval and, if a paper reports it, the published value.

    Args:
        figures: by name.
        published: by name, model and percent.
    """
    lines = ["| Figure | Value | 95 % interval | n | Published (F-LMM) |", "| --- | --- | --- | --- | --- |"]
    for name, figure in figures.items():
        said = ", ".join(f"{model} {percent / 100:.3f}" for model, percent in published.get(name, ()))
        lines.append(f"| {' | '.join((name, *figure_cells(figure)))} | {said or '-'} |")
    return "\n".join(lines) + "\n"


def extremes_page(title: str, table: str, dataset: Dataset[Any], images: Sequence[ImageCases]) -> str:
    """A self-contained HTML page: the table, then the best and the worst images with predicted and true masks.

    Args:
        title: of the page.
        table: of :func:`markdown_table`, shown as text.
        dataset: that the images come from.
        images: evaluated ones.
    """
    best, worst = extremes(images, SHOWN)
    parts = [
        "<!DOCTYPE html><html lang=en><meta charset=utf-8>",
        f"<title>{html.escape(title)}</title>",
        "<style>body{font:15px sans-serif;margin:2em;background:#14161c;color:#eceef2}pre{color:#c9ced8}"
        "figure{display:inline-block;margin:8px;vertical-align:top}img{height:320px}</style>",
        f"<h1>{html.escape(title)}</h1><pre>{html.escape(table)}</pre>",
    ]
    for heading, chosen in (("Best", best), ("Worst", worst)):
        parts.append(f"<h2>{heading}</h2>")
        for image in chosen:
            found, true = _pictures(dataset, image)
            caption = html.escape(f"{image.path.name}: mean IoU {image.mean_iou:.3f}")
            pictures = f"<img src={_data(found)} alt=found> <img src={_data(true)} alt=true>"
            parts.append(f"<figure>{pictures}<figcaption>{caption}</figcaption></figure>")
    return "\n".join(parts) + "\n"


def _pictures(dataset: Dataset[Any], image: ImageCases) -> tuple[Image.Image, Image.Image]:
    """Drawings of the predicted and of the true masks."""
    sample = dataset[image.index]
    pixels = sample.image()
    text, phrases, details = "", [], []
    for case in image.cases[:DRAWN_CASES]:
        mask = torch.from_numpy(coco_mask.decode(case.rle).astype(bool))
        text += " " if text else ""
        phrases.append(drawn_phrase(case.words, len(text), mask, absent=not case.masked))
        text += case.words + "."
        details.append(f"IoU {case.iou:.2f}")
    found = draw_overlay(pixels, GroundedAnswer(text, tuple(phrases), *pixels.shape[:2]), command="found", details=details)
    turn = next((turn for turn in sample.turns if turn.spans), sample.turns[0])
    true = draw_overlay(pixels, true_answer(sample, turn, DRAWN_CASES), command="true")
    return Image.fromarray(found), Image.fromarray(true)


def _data(image: Image.Image) -> str:
    file = io.BytesIO()
    image.thumbnail((960, 960))
    image.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
