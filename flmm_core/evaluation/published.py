"""Figures that papers report, for tables beside measured ones (F-LMM, tables 1 and 3; percent)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PublishedRow:
    """A row of F-LMM's tables: cIoU on the validation sets of RefCOCO, RefCOCO+ and RefCOCOg, average recall on PNG."""

    model: str
    refcoco: float
    refcoco_plus: float
    refcocog: float
    png: float


PUBLISHED = (
    PublishedRow("DeepSeekVL-1.3B", 75.0, 62.8, 68.2, 64.9),
    PublishedRow("LLaVA-1.5-7B", 75.2, 63.7, 67.1, 64.8),
    PublishedRow("LLaVA-NeXT-Mistral-7B", 75.7, 66.5, 70.1, 66.5),
    PublishedRow("DeepSeekVL-7B", 76.1, 66.4, 70.1, 65.7),
    PublishedRow("MGM-HD-7B", 76.1, 65.2, 68.5, 66.7),
)


VALIDATION = ("val", "umd/val", "val2017")
"""Names of the splits to which the figures belong."""


def published_figures(folder: str, split: str, figure: str) -> list[tuple[str, float]]:
    """Models and values that F-LMM reports for a data set; empty if it reports none.

    Args:
        folder: name of the data set's folder: refcoco, refcoco+, refcocog, or anything for PNG.
        split: of the data set.
        figure: as measured: "cIoU" or "average recall: all".
    """
    if split not in VALIDATION:
        return []
    if figure == "average recall: all":
        return [(row.model, row.png) for row in PUBLISHED]
    column = {"refcoco": "refcoco", "refcoco+": "refcoco_plus", "refcocog": "refcocog"}.get(folder.lower())
    if figure != "cIoU" or column is None:
        return []
    return [(row.model, getattr(row, column)) for row in PUBLISHED]
