"""Presence without training: how much attention lies inside the region that a phrase claims (MTLA, arXiv 2607.05978).

Words of an object that is there look at one place, the claimed one; words of an object that is not there look everywhere or
nowhere. Two numbers turn the attention into a probability.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flmm_core.images.geometry import unpad
from flmm_core.types import CoarseMasks

_LEAST = 1e-6
"""Attention below this counts as none."""
_STEPS = 50
"""Newton steps of the fit, which converges in far fewer."""
_RIDGE = 1e-3
"""Weight decay of the fit, so that pairs that separate give finite numbers."""


@dataclass(frozen=True)
class AttentionPresence:
    """Probability that the object of a phrase is in the image: a logistic function of the log of the attention inside."""

    bands: tuple[tuple[int, int], ...]
    """Half-open ranges of the attention channels that count."""
    slope: float
    offset: float

    def probabilities(self, maps: Tensor, coarse: CoarseMasks) -> list[float]:
        """Probabilities of ``n`` phrases; arguments as of :func:`attention_inside`."""
        inside = attention_inside(maps, coarse, self.bands).log()
        return torch.sigmoid(self.slope * inside + self.offset).tolist()

    @property
    def threshold(self) -> float:
        """Attention inside the region at which the probability is 0.5."""
        return float(np.exp(-self.offset / self.slope))


def middle_bands(layers: Sequence[int], depth: int) -> tuple[tuple[int, int], ...]:
    """Ranges of the channels of the middle layers, from a quarter to three fifths of the depth, as MTLA takes them.

    Args:
        layers: decoder layer of each channel.
        depth: decoder layers of the LMM.
    """
    middle = {channel for channel, layer in enumerate(layers) if depth // 4 <= layer < -(-depth * 3 // 5)}
    starts = [channel for channel in sorted(middle) if channel - 1 not in middle]
    ends = [channel + 1 for channel in sorted(middle) if channel + 1 not in middle]
    return tuple(zip(starts, ends, strict=True))


def attention_inside(maps: Tensor, coarse: CoarseMasks, bands: tuple[tuple[int, int], ...]) -> Tensor:
    """Attention ``[n]`` inside each phrase's coarse mask, at least 1e-6: its sum over cells, averaged over channels.

    Args:
        maps: ``[n, c, h, w]`` attention of the phrases over the padded frame, not normalised.
        coarse: ``n`` masks; their positive part is the region.
        bands: ranges of channels to average.
    """
    seen = unpad(torch.cat([maps[:, first:last] for first, last in bands], dim=1).float(), coarse.geometry).mean(dim=1)
    region = (coarse.logits > 0).float()[:, None]
    share = F.interpolate(region, seen.shape[-2:], mode="area")[:, 0] if len(region) else seen
    return (seen * share).sum(dim=(-2, -1)).clamp_min(_LEAST)


def fit_presence(present: np.ndarray, absent: np.ndarray, bands: tuple[tuple[int, int], ...]) -> AttentionPresence:
    """The logistic function that tells phrases apart, both kinds with the same total weight.

    Args:
        present: ``[p]`` attention inside the regions of phrases whose objects are there.
        absent: ``[a]`` of phrases whose objects are not.
        bands: of the channels that were averaged.

    Raises:
        ValueError: a kind has no phrase.
    """
    if not len(present) or not len(absent):
        raise ValueError(f"presence: expected phrases of both kinds, got {len(present)} present and {len(absent)} absent")
    logs = np.log(np.concatenate([present, absent]))
    middle, spread = logs.mean(), max(float(logs.std()), 1e-6)
    inputs = np.stack([(logs - middle) / spread, np.ones_like(logs)], axis=1)
    truth = np.concatenate([np.ones(len(present)), np.zeros(len(absent))])
    weights = np.where(truth > 0, 0.5 / len(present), 0.5 / len(absent))
    found = np.zeros(2)
    for _ in range(_STEPS):
        expected = 1 / (1 + np.exp(-np.clip(inputs @ found, -30, 30)))
        gradient = inputs.T @ (weights * (expected - truth)) + _RIDGE * found
        curvature = (inputs * (weights * expected * (1 - expected))[:, None]).T @ inputs + _RIDGE * np.eye(2)
        found -= np.linalg.solve(curvature, gradient)
    slope = float(found[0] / spread)
    return AttentionPresence(bands, slope, float(found[1] - slope * middle))


def auroc(present: np.ndarray, absent: np.ndarray) -> float:
    """Share of the pairs of a present and an absent phrase in which the present one has the higher score; ties count half."""
    scores = np.concatenate([present, absent])
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    wins = ranks[: len(present)].sum() - len(present) * (len(present) + 1) / 2
    return float(wins / (len(present) * len(absent)))
