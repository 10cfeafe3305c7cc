"""Shares and ratios of counts, with their 95 % intervals. This file is independent of models and data sets.

Questions about one image fall and rise together, so every interval resamples images, never questions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from flmm_core.images.masks import Overlap

Range = tuple[int, int]
"""Half-open character range."""

CONFIDENCE_Z = 1.959964
"""Standard normal quantile of a two-sided 95 % interval."""
RESAMPLES = 2000
"""Resamples of the bootstrap."""

_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Figure:
    """A measured number with its 95 % interval."""

    value: float
    low: float
    high: float
    count: int
    """Count of the cases: questions, masks, phrases or words."""


@dataclass(frozen=True)
class Tally:
    """Count of the cases of one image, and of those that are right."""

    right: int
    total: int

    @classmethod
    def of(cls, cases: Iterable[bool]) -> Tally:
        """Count the cases."""
        listed = list(cases)
        return cls(sum(listed), len(listed))


@dataclass(frozen=True)
class Retrieval:
    """Counts of retrieved items, of true items, and of those that are both."""

    right: int
    found: int
    true: int

    def __add__(self, other: Retrieval) -> Retrieval:
        return Retrieval(self.right + other.right, self.found + other.found, self.true + other.true)


def figure_cells(figure: Figure) -> tuple[str, str, str]:
    """A figure's value, interval and count for a table; "-" for NaN."""
    value = "-" if math.isnan(figure.value) else f"{figure.value:.3f}"
    interval = "-" if math.isnan(figure.low) else f"{figure.low:.3f} to {figure.high:.3f}"
    return value, interval, str(figure.count)


def share(images: Sequence[Tally]) -> Figure:
    """A share of cases with its interval over images, whose cases depend on one another; NaN without cases.

    Where all cases are right, or none is, resampling changes nothing: then it is Wilson's interval, with images as cases.
    """
    right, total = [tally.right for tally in images], [tally.total for tally in images]
    figure = ratio(right, total, count=sum(total))
    if figure.value not in (0.0, 1.0):
        return figure
    asked = sum(cases > 0 for cases in total)
    margin = CONFIDENCE_Z**2 / (asked + CONFIDENCE_Z**2)
    return replace(figure, high=margin) if figure.value == 0 else replace(figure, low=1 - margin)


def ratio(above: Sequence[float], below: Sequence[float], *, count: int, seed: int = 0) -> Figure:
    """A ratio of two sums over images, with its percentile bootstrap interval over images; NaN without cases.

    Args:
        above: what each image adds to the numerator.
        below: what each image adds to the denominator.
        count: what the figure was measured on, for the reader.
        seed: of the bootstrap.
    """
    a, b = np.asarray(above, float), np.asarray(below, float)
    if b.sum() == 0:
        return Figure(math.nan, math.nan, math.nan, count)
    # Counts of each image in a resample, drawn at once: a matrix product then gives all the sums.
    weights = np.random.default_rng(seed).multinomial(len(a), np.full(len(a), 1 / len(a)), size=RESAMPLES)
    sums_a, sums_b = weights @ a, weights @ b
    low, high = np.percentile(sums_a[sums_b > 0] / sums_b[sums_b > 0], (2.5, 97.5))
    return Figure(float(a.sum() / b.sum()), float(low), float(high), count)


def cumulative_iou(images: Sequence[Sequence[Overlap]]) -> Figure:
    """cIoU, the sum of intersections over the sum of unions, of the masks of each image."""
    shared = [sum(mask.shared for mask in masks) for masks in images]
    union = [sum(mask.union for mask in masks) for masks in images]
    return ratio(shared, union, count=sum(map(len, images)))


def mean_iou(images: Sequence[Sequence[Overlap]]) -> Figure:
    """mIoU, the mean of the masks' own IoU, of the masks of each image."""
    counts = [len(masks) for masks in images]
    return ratio([sum(mask.iou for mask in masks) for masks in images], counts, count=sum(counts))


def f1(images: Sequence[Retrieval]) -> Figure:
    """F1, the harmonic mean of precision and recall, of all images' counts together."""
    found_and_true = [counts.found + counts.true for counts in images]
    return ratio([2 * counts.right for counts in images], found_and_true, count=sum(counts.true for counts in images))


def precision(images: Sequence[Retrieval]) -> Figure:
    """Share of the retrieved items that are right."""
    return share([Tally(counts.right, counts.found) for counts in images])


def recall(images: Sequence[Retrieval]) -> Figure:
    """Share of the true items that were retrieved."""
    return share([Tally(counts.right, counts.true) for counts in images])


def phrase_retrieval(found: Sequence[Range], true: Sequence[Range]) -> Retrieval:
    """Retrieval of phrases; a phrase is right if its range equals a true one."""
    return Retrieval(len(set(found) & set(true)), len(set(found)), len(set(true)))


def word_retrieval(text: str, found: Sequence[Range], true: Sequence[Range]) -> Retrieval:
    """Retrieval of words; a word counts as retrieved, or as true, if it overlaps one of the ranges."""
    words = [match.span() for match in _WORD.finditer(text)]
    in_found, in_true = ([any(a < end and start < b for a, b in ranges) for start, end in words] for ranges in (found, true))
    return Retrieval(sum(f and t for f, t in zip(in_found, in_true, strict=True)), sum(in_found), sum(in_true))
