"""Choice of the attention heads that point at what phrases name, from their maps alone: no masks, no training.

A few of an LMM's attention heads localise: they pay much attention to the image, and pay it in one place (Kang et al., CVPR
2025, arXiv 2503.06287); and they look elsewhere for another phrase. This file knows maps; it knows nothing of models, words or
padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

CRITERIA = ("entropy", "contrast")
"""How heads are compared for a phrase: low spatial entropy, as published, or much attention beyond that of other phrases."""
VOTES = 10
"""Heads that each phrase votes for."""
AGREEMENT = 0.75
"""Standard deviation of the Gaussian, in cells, before maps are compared with one another."""


@dataclass(frozen=True)
class HeadScore:
    """One attention channel of a choice."""

    channel: int
    votes: int
    """Phrases that have it among their :data:`VOTES` best."""
    attention: float
    """Mean share of a token's attention that goes to the image."""
    score: float
    """Mean spatial entropy, or mean attention beyond that of other phrases; by the criterion."""


@dataclass(frozen=True)
class HeadFigures:
    """How the channels attend to an image for ``n`` phrases about it; ``[n, c]`` each."""

    attention: np.ndarray
    """Share of the tokens' attention that goes to the image."""
    scores: np.ndarray
    """Of the criterion: :func:`spatial_entropy` or :func:`own_attention`."""

    @classmethod
    def of(cls, maps: np.ndarray, criterion: str) -> HeadFigures:
        """Measure maps.

        Args:
            maps: ``[n, c, h, w]`` attention of phrases about one image, cut to the image, not normalised.
            criterion: of :data:`CRITERIA`.
        """
        if criterion not in CRITERIA:
            raise ValueError(f"criterion: expected one of {', '.join(CRITERIA)}, got {criterion!r}")
        measure = {"entropy": spatial_entropy, "contrast": own_attention}[criterion]
        return cls(maps.sum(axis=(-2, -1)), measure(maps))


def ranked_heads(found: Sequence[HeadFigures], criterion: str) -> list[HeadScore]:
    """The channels that look at the image, those that point best first.

    Each phrase votes for the :data:`VOTES` channels that are best for it; votes decide, then the mean score.

    Args:
        found: figures of each image.
        criterion: by which they were measured.

    Raises:
        ValueError: there is no phrase.
    """
    if not any(len(one.attention) for one in found):
        raise ValueError("attention heads: expected at least one phrase to choose by, got none")
    attention = np.concatenate([one.attention for one in found]).mean(axis=0)
    looking = above_elbow(attention)
    scores = np.concatenate([one.scores for one in found])[:, looking]
    costs = scores if criterion == "entropy" else -scores
    votes = np.zeros(len(looking), int)
    for phrase in costs:
        votes[np.argsort(phrase, kind="stable")[:VOTES]] += 1
    order = np.lexsort((-attention[looking], costs.mean(axis=0), -votes))
    means = scores.mean(axis=0)
    return [HeadScore(int(looking[i]), int(votes[i]), float(attention[looking[i]]), float(means[i])) for i in order]


def agreeing_heads(maps: np.ndarray, count: int) -> list[int]:
    """Channels that point best for one phrase, best first, from its own maps alone.

    Of the :data:`VOTES` channels that look at the image with the lowest spatial entropy, those whose smoothed maps agree most
    with one another: a head that looks in one place, but always in the same, is alone there.

    Args:
        maps: ``[c, h, w]``, cut to the image, not normalised.
        count: channels to choose.
    """
    looking = above_elbow(maps.sum(axis=(-2, -1)))
    entropy = spatial_entropy(maps[None, looking])[0]
    sharp = looking[np.argsort(entropy, kind="stable")[:VOTES]]
    smoothed = np.stack([cv2.GaussianBlur(maps[i].astype(np.float32), (0, 0), AGREEMENT).ravel() for i in sharp])
    smoothed /= np.maximum(np.linalg.norm(smoothed, axis=1, keepdims=True), 1e-12)
    agreement = (smoothed @ smoothed.T).sum(axis=1)
    return [int(i) for i in sharp[np.argsort(-agreement, kind="stable")[:count]]]


def above_elbow(values: np.ndarray) -> np.ndarray:
    """Indices, ascending, of the values ``[c]`` above the elbow of their sorted curve: its largest distance to its chord."""
    order = np.argsort(values, kind="stable")
    rise = values[order] - values[order[0]]
    if rise[-1] <= 0:
        return np.arange(len(values))
    elbow = int(np.argmax(np.abs(np.linspace(0, 1, len(values)) - rise / rise[-1])))
    return np.sort(order[min(elbow + 1, len(values) - 1) :])


def spatial_entropy(maps: np.ndarray) -> np.ndarray:
    """Entropy ``[n, c]`` of the shares of attention of each map's connected components; low for attention in one place.

    Components are cells above the map's mean that touch, also at corners. A map without such cells gets the largest entropy.

    Args:
        maps: ``[n, c, h, w]``.
    """
    found = np.full(maps.shape[:2], np.log(maps.shape[-2] * maps.shape[-1]))
    for place in np.ndindex(*found.shape):
        shares = _components(maps[place] > maps[place].mean(), maps[place])[1]
        if len(shares):
            shares = shares / shares.sum()
            found[place] = -(shares * np.log(shares)).sum()
    return found


def own_attention(maps: np.ndarray) -> np.ndarray:
    """Attention ``[n, c]`` of each phrase beyond the mean of the other phrases about the image, cell by cell.

    Args:
        maps: ``[n, c, h, w]`` of phrases about one image.
    """
    others = (maps.sum(axis=0, keepdims=True) - maps) / max(1, len(maps) - 1)
    return np.clip(maps - others, 0, None).sum(axis=(-2, -1))


def largest_component(mask: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The connected component (also at corners) of a mask ``[h, w]`` bool with the most weight; all of an empty mask."""
    labels, sums = _components(mask, weights)
    return labels == 1 + int(sums.argmax()) if len(sums) else np.ones_like(mask)


def _components(mask: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels ``[h, w]`` of the components of a mask, 0 outside, and the sum of the weights in each."""
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    return labels, np.bincount(labels.ravel(), weights.ravel().astype(np.float64), count)[1:]
