"""Figures with their intervals. Nothing here knows of models or data sets: counts go in, shares and ratios come out."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Range = tuple[int, int]
"""Half-open character range."""

CONFIDENCE_Z = 1.959964
"""Standard normal quantile of a two-sided 95 % interval."""
RESAMPLES = 2000
"""Of the bootstrap."""

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Figure:
    """A measured number with its 95 % interval."""

    value: float
    low: float
    high: float
    count: int
    """What it was measured on: questions, masks, phrases, words."""


@dataclass(frozen=True)
class Overlap:
    """Pixels of a found and a true mask. One of them may be empty: a thing without a mask, a mask without a thing."""

    shared: int
    union: int

    @property
    def iou(self) -> float:
        """Intersection over union; 0 for two empty masks."""
        return self.shared / self.union if self.union else 0.0

    @classmethod
    def of(cls, found: np.ndarray | None, true: np.ndarray | None) -> Overlap:
        """Compare masks ``[H, W]`` bool; None for one that is not there."""
        if found is None or true is None:
            only = true if found is None else found
            return cls(0, 0 if only is None else int(only.sum()))
        return cls(int((found & true).sum()), int((found | true).sum()))


@dataclass(frozen=True)
class Retrieval:
    """Counts of things found, and of those that should have been."""

    right: int
    found: int
    true: int


def normalise_answer(text: str) -> str:
    """Lower case without punctuation and with single spaces: what "normalised exact match" compares."""
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split())


def share(right: int, total: int) -> Figure:
    """A share of independent cases with its Wilson interval; NaN of nothing."""
    if total == 0:
        return Figure(math.nan, math.nan, math.nan, 0)
    p, z2 = right / total, CONFIDENCE_Z**2
    centre = (p + z2 / (2 * total)) / (1 + z2 / total)
    half = CONFIDENCE_Z / (1 + z2 / total) * math.sqrt(p * (1 - p) / total + z2 / (4 * total**2))
    return Figure(p, max(0.0, centre - half), min(1.0, centre + half), total)


def ratio(above: Sequence[float], below: Sequence[float], *, count: int, seed: int = 0) -> Figure:
    """A ratio of two sums over pictures, with its percentile bootstrap interval over pictures; NaN of nothing.

    Args:
        above: what each picture adds to the numerator.
        below: what each picture adds to the denominator.
        count: what the figure was measured on, for the reader.
        seed: of the bootstrap.
    """
    a, b = np.asarray(above, float), np.asarray(below, float)
    if b.sum() == 0:
        return Figure(math.nan, math.nan, math.nan, count)
    # Counts of each picture in a resample, drawn at once: a matrix product then gives all the sums.
    weights = np.random.default_rng(seed).multinomial(len(a), np.full(len(a), 1 / len(a)), size=RESAMPLES)
    sums_a, sums_b = weights @ a, weights @ b
    low, high = np.percentile(sums_a[sums_b > 0] / sums_b[sums_b > 0], (2.5, 97.5))
    return Figure(float(a.sum() / b.sum()), float(low), float(high), count)


def cumulative_iou(pictures: Sequence[Sequence[Overlap]]) -> Figure:
    """cIoU, the sum of intersections over the sum of unions, of the masks of each picture."""
    shared = [sum(mask.shared for mask in masks) for masks in pictures]
    union = [sum(mask.union for mask in masks) for masks in pictures]
    return ratio(shared, union, count=sum(map(len, pictures)))


def mean_iou(pictures: Sequence[Sequence[Overlap]]) -> Figure:
    """mIoU, the mean of the masks' own IoU, of the masks of each picture."""
    counts = [len(masks) for masks in pictures]
    return ratio([sum(mask.iou for mask in masks) for masks in pictures], counts, count=sum(counts))


def f1(pictures: Sequence[Retrieval]) -> Figure:
    """F1 of all pictures' counts together."""
    found_and_true = [counts.found + counts.true for counts in pictures]
    return ratio([2 * counts.right for counts in pictures], found_and_true, count=sum(counts.true for counts in pictures))


def phrase_retrieval(found: Sequence[Range], true: Sequence[Range]) -> Retrieval:
    """Phrases are right if they begin and end where a true one does."""
    return Retrieval(len(set(found) & set(true)), len(set(found)), len(set(true)))


def word_retrieval(text: str, found: Sequence[Range], true: Sequence[Range]) -> Retrieval:
    """Words count as found, and as true, if they touch one of the ranges."""
    words = [match.span() for match in _WORD.finditer(text)]
    in_found, in_true = ([any(a < end and start < b for a, b in ranges) for start, end in words] for ranges in (found, true))
    return Retrieval(sum(f and t for f, t in zip(in_found, in_true, strict=True)), sum(in_found), sum(in_true))
