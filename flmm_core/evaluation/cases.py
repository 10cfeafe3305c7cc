"""Predicted masks of phrases compared with ground truth, and the figures of published benchmarks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from flmm_core.data.masks import mask_rle
from flmm_core.data.samples import Sample
from flmm_core.evaluation.metrics import Figure, Tally, cumulative_iou, ratio, share
from flmm_core.images.masks import Overlap

THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Thresholds of the IoU for precision."""


@dataclass(frozen=True)
class Case:
    """A phrase with the overlap of its predicted and its true mask."""

    words: str
    overlap: Overlap
    there: bool
    """Whether the phrase refers to an object in the image."""
    rle: dict[str, Any]
    """The predicted mask, as compressed RLE."""
    tags: tuple[str, ...] = ()

    @classmethod
    def of(cls, words: str, found: np.ndarray, sample: Sample, objects: Sequence[int], tags: tuple[str, ...] = ()) -> Case:
        """Compare a mask ``[H, W]`` bool with the true one; ignored pixels are removed from both."""
        true = sample.mask(objects) if objects else np.zeros_like(found)
        if sample.ignored:
            counted = ~sample.mask(sample.ignored)
            found, true = found & counted, true & counted
        return cls(words, Overlap.of(found, true), bool(objects), mask_rle(found), tags)

    @property
    def masked(self) -> bool:
        """Whether the predicted mask has any pixel that is not ignored."""
        return bool(coco_mask.area(self.rle))

    @property
    def iou(self) -> float:
        """Intersection over union; 1 if the phrase has no object and the mask is empty (gRefCOCO's rule)."""
        return 1.0 if not self.there and not self.overlap.union else self.overlap.iou


@dataclass(frozen=True)
class ImageCases:
    """The cases of one image."""

    index: int
    """Index of the sample in the data set."""
    path: Path
    cases: tuple[Case, ...]
    seconds: float
    """Time for all cases, including the image's features."""

    @property
    def mean_iou(self) -> float:
        """Mean IoU of the cases."""
        return float(np.mean([case.iou for case in self.cases]))


def figures_of(images: Sequence[ImageCases]) -> dict[str, Figure]:
    """cIoU, gIoU, precision at thresholds, and accuracy on phrases without an object, if there are any.

    cIoU is the sum of intersections over the sum of unions, gIoU the mean of IoUs. No-target accuracy is the share of phrases
    of nothing that got no mask, target accuracy that of the others that got one. Intervals resample images.
    """
    figures = {
        "cIoU": cumulative_iou([[case.overlap for case in image.cases] for image in images]),
        "gIoU": _mean(images, lambda case: True),
    }
    for threshold in THRESHOLDS:
        hits = [Tally.of(case.overlap.iou >= threshold for case in image.cases if case.there) for image in images]
        figures[f"precision at IoU {threshold}"] = share(hits)
    if any(not case.there for image in images for case in image.cases):
        absent = [Tally.of(not case.masked for case in image.cases if not case.there) for image in images]
        present = [Tally.of(case.masked for case in image.cases if case.there) for image in images]
        figures["no-target accuracy"] = share(absent)
        figures["target accuracy"] = share(present)
    return figures


def recall_figures(images: Sequence[ImageCases]) -> dict[str, Figure]:
    """Average recall of PNG: of all phrases, and by their tags.

    Recall at a threshold is the share of phrases whose IoU reaches it; its integral over thresholds from 0 to 1 is the mean
    IoU, which is computed as such.
    """
    tags = sorted({tag for image in images for case in image.cases for tag in case.tags})
    figures = {"average recall: all": _mean(images, lambda case: True)}
    for tag in tags:
        figures[f"average recall: {tag}"] = _mean(images, lambda case, tag=tag: tag in case.tags)  # type: ignore[misc]
    return figures


def _mean(images: Sequence[ImageCases], chosen: Callable[[Case], bool]) -> Figure:
    kept = [[case.iou for case in image.cases if chosen(case)] for image in images]
    return ratio([sum(ious) for ious in kept], [len(ious) for ious in kept], count=sum(map(len, kept)))


def extremes(images: Sequence[ImageCases], count: int) -> tuple[list[ImageCases], list[ImageCases]]:
    """The best and the worst images by the mean IoU of their cases, each best or worst first; none is in both."""
    ranked = sorted((image for image in images if image.cases), key=lambda image: -image.mean_iou)
    best = ranked[: min(count, (len(ranked) + 1) // 2)]
    return best, list(reversed(ranked[len(best) :]))[:count]
