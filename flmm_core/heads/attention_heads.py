"""Heads that need no training: a few attention heads of the frozen LMM, and a stock SAM.

Their maps are normalised, summed, smoothed, and cut to one blob, which prompts SAM (localization heads, arXiv 2503.06287).
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from flmm_core.heads.attention_presence import AttentionPresence
from flmm_core.heads.head_choice import agreeing_heads, largest_component
from flmm_core.heads.interface import Heads
from flmm_core.images.geometry import unpad
from flmm_core.sam.refiner import RefinerConfig, SamRefiner
from flmm_core.types import CoarseMasks, ImageGeometry

HEADS = 3
"""Attention heads that are summed where a calibration chose them."""
SMOOTHING = 0.75
"""Standard deviation of the Gaussian that smooths a map, cells."""
CUT = 0.3
"""Share of a map's maximum above which a cell belongs to the coarse mask."""
STEEPNESS = 10.0
"""Logits of a coarse mask from its cut to its maximum, divided by the distance of the two."""
UNCALIBRATED = 5
"""Attention heads that are summed where they are chosen for each phrase."""
PROMPTS = RefinerConfig(use_mask=False, use_text=False, points=3, multimask=True, choice="predicted")
"""Prompts of a stock SAM, which was trained on boxes and points, and the mask that it takes for the best."""
IMITATED_PROMPTS = RefinerConfig(use_text=False)
"""Prompts of a SAM that this project trained: coarse masks and their boxes, and no points."""


class AttentionHeads(Heads):
    """Masks from chosen attention heads.

    Args:
        sam: with :data:`PROMPTS` or :data:`IMITATED_PROMPTS`.
        layers: decoder layers of the LMM.
        channels: the chosen attention channels; none to choose them for each phrase, from its own maps.
        presence: calibrated; None for none.
    """

    networks = ("sam_encoder", "sam_decoder")

    def __init__(
        self, *, sam: SamRefiner, layers: int, channels: Sequence[int] = (), presence: AttentionPresence | None = None
    ) -> None:
        super().__init__()
        self.sam = sam
        self.channels = tuple(channels)
        self.presence = presence
        self.register_buffer("_no_states", torch.zeros(0, layers), persistent=False)
        self._no_states: Tensor

    @property
    def description(self) -> str:
        """Their kind, for people."""
        if not self.channels:
            return f"not trained: {UNCALIBRATED} attention heads, chosen for each phrase"
        return f"not trained: {len(self.channels)} attention heads, calibrated"

    @property
    def selects_keywords(self) -> bool:
        """False."""
        return False

    def layer_weights(self) -> Tensor:
        """``[0, l]``: no hidden states are read."""
        return self._no_states

    def keyword_logits(self, states: Tensor) -> None:
        """None."""

    def text_tokens(self, states: Tensor) -> Tensor:
        """``[0, 256]``."""
        return states.new_zeros(0, self.sam.text_size)

    def coarse_masks(self, maps: Tensor, geometry: ImageGeometry) -> CoarseMasks:
        """The largest blob of each phrase's map; see :func:`blob_masks`."""
        return blob_masks(maps, geometry, self.channels)

    def presence_probabilities(self, states: Sequence[Tensor], maps: Tensor, coarse: CoarseMasks) -> list[float]:
        """By the attention inside the coarse masks; 1 without calibration."""
        return [1.0] * len(states) if self.presence is None else self.presence.probabilities(maps, coarse)


def blob_masks(maps: Tensor, geometry: ImageGeometry, channels: Sequence[int] = ()) -> CoarseMasks:
    """Coarse masks on the grid of the image's cells.

    Args:
        maps: ``[n, c, h, w]`` attention of phrases over the padded frame.
        geometry: of the image in that frame.
        channels: to look at; none for those that point best for each phrase, by :func:`agreeing_heads`.
    """
    seen = unpad(maps, geometry)
    seen = (seen[:, list(channels)] if channels else seen).float()
    if not len(seen):
        return CoarseMasks(seen.new_zeros(0, *seen.shape[-2:]), geometry)
    phrases = seen.cpu().numpy()
    chosen = phrases if channels else [phrase[agreeing_heads(phrase, UNCALIBRATED)] for phrase in phrases]
    logits = np.stack([blob_logits(pointing_map(phrase)) for phrase in chosen])
    return CoarseMasks(torch.from_numpy(logits).to(maps.device), geometry)


def pointing_map(maps: np.ndarray) -> np.ndarray:
    """One map ``[h, w]`` from those of the chosen heads ``[k, h, w]``: each with the sum 1, added, smoothed."""
    total = (maps / np.maximum(maps.sum(axis=(-2, -1), keepdims=True), 1e-12)).sum(axis=0)
    return cv2.GaussianBlur(total.astype(np.float32), (0, 0), SMOOTHING)


def blob_logits(pointing: np.ndarray) -> np.ndarray:
    """Logits ``[h, w]`` float32 of the largest component above the mean of a map; positive above :data:`CUT` of its maximum."""
    blob = np.where(largest_component(pointing > pointing.mean(), pointing), pointing, 0)
    return ((blob / max(float(blob.max()), 1e-12) - CUT) * STEEPNESS).astype(np.float32)
