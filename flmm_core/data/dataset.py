"""Data sets of images with questions, answers and masks on disk, as the trainers and evaluations read them.

Layout of a data-set folder (written by ``flmm scenes``; any other source of the same layout will do)::

    images/000000.png   images
    annotations.json    COCO: images, annotations (compressed RLE masks, attributes.color), categories
    questions.json      for each image its turns: kind, question, answer, spans {start, end, annotation_ids}
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from flmm_core.image_files import read_image

DATASET_FILES = ("questions.json", "annotations.json")
"""What a data-set folder must hold beside its images."""

REFER = "refer"
"""The kind of turn that refer mode reads: names of objects, each followed by a full stop."""

REFER_ABSENT = "refer_absent"
"""As ``REFER``, but some of the names mean nothing that is there."""

MISTAKE = "mistake"
"""A wrong answer, which names what is not there."""

NO_ANSWERS = (REFER, REFER_ABSENT, MISTAKE)
"""Kinds that only heads learn from; every other kind has one right answer, which an LMM may learn."""


@dataclass(frozen=True)
class Span:
    """A name in an answer: characters ``[start, end)`` and the indices of the image's objects that it names."""

    start: int
    end: int
    objects: tuple[int, ...]
    """Empty for a name of what is not there, as in "there is no red mug"."""


@dataclass(frozen=True)
class Turn:
    """A question and its true answer."""

    kind: str
    question: str
    answer: str
    spans: tuple[Span, ...]

    @property
    def present(self) -> tuple[Span, ...]:
        """Names of what is there."""
        return tuple(span for span in self.spans if span.objects)


@dataclass(frozen=True)
class Sample:
    """One image of a data set with its truth, read from disk."""

    path: Path
    turns: tuple[Turn, ...]
    """Spans index ``names`` and ``rles``."""
    names: tuple[str, ...]
    """"red mug", one for each object."""
    rles: tuple[dict[str, Any], ...]
    """Compressed COCO masks, one for each object."""

    def image(self) -> np.ndarray:
        """Read the image, ``[H, W, 3]`` uint8 RGB."""
        return read_image(self.path)

    def mask(self, objects: tuple[int, ...]) -> np.ndarray:
        """Decode the union of some objects' masks, ``[H, W]`` bool."""
        return coco_mask.decode(coco_mask.merge([self.rles[i] for i in objects])).astype(bool)


def read_dataset(folder: Path) -> Iterator[Sample]:
    """Read the images of a data set in order.

    Raises:
        ValueError: the folder holds no data set.
    """
    for name in DATASET_FILES:
        if not (folder / name).is_file():
            raise ValueError(f"expected a data set of `flmm scenes` at {folder}, got a folder without {name}")
    coco = json.loads((folder / "annotations.json").read_text())
    turns = {entry["image_id"]: entry["turns"] for entry in json.loads((folder / "questions.json").read_text())}
    kinds = {category["id"]: category["name"] for category in coco["categories"]}
    objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in coco["images"]}
    for annotation in coco["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    for image in coco["images"]:
        annotations = objects[image["id"]]
        index = {annotation["id"]: i for i, annotation in enumerate(annotations)}
        yield Sample(
            path=folder / "images" / image["file_name"],
            turns=tuple(_turn(turn, index) for turn in turns[image["id"]]),
            names=tuple(f"{a['attributes']['color']} {kinds[a['category_id']]}" for a in annotations),
            rles=tuple(a["segmentation"] for a in annotations),
        )


def _turn(turn: dict[str, Any], index: dict[int, int]) -> Turn:
    spans = tuple(Span(s["start"], s["end"], tuple(index[i] for i in s["annotation_ids"])) for s in turn["spans"])
    return Turn(turn["kind"], turn["question"], turn["answer"], spans)
