"""The types that travel between the stages of grounding, one for each arrow of the path.

Legend of shapes, used in every docstring of the project::

    n  phrases            t  tokens                c  attention channels = layers * query heads
    l  decoder layers     d  hidden size           h, w  image-token grid
    H, W  image height and width in pixels

Pixel boxes are XYXY with exclusive ends, origin at the top left of the image, x to the right and y down.
Character ranges are half-open ``[start, end)`` into the text they belong to. Durations are seconds.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch


@dataclass(frozen=True)
class ImageGeometry:
    """How an image lies inside the frame that the LMM's vision tower sees.

    The image is resized to ``inner_height x inner_width`` and placed at ``(offset_y, offset_x)`` of a frame of
    ``padded_height x padded_width`` pixels, over which the image tokens form a ``grid_height x grid_width`` grid.
    """

    image_height: int
    image_width: int
    padded_height: int
    padded_width: int
    offset_y: int
    offset_x: int
    inner_height: int
    inner_width: int
    grid_height: int
    grid_width: int


@dataclass(frozen=True)
class KeywordSpan:
    """A phrase of the answer that gets a mask."""

    text: str
    start: int
    """First character in the answer."""
    end: int
    """One past the last character in the answer."""
    token_start: int
    """First token of the answer, counted from the answer's first token."""
    token_end: int
    """One past the last token."""
    score: float = 1.0
    """Confidence of the keyword selector in [0, 1]; 1 for phrases given by the user."""


@dataclass(frozen=True)
class CoarseMasks:
    """Un-padded mask logits before SAM, which cover exactly the image."""

    logits: torch.Tensor
    """``[n, h', w']`` float32."""
    geometry: ImageGeometry


@dataclass(frozen=True)
class GroundedPhrase:
    """A phrase with the mask of the object that it names."""

    text: str
    start: int
    end: int
    pixels: torch.Tensor
    """``[H, W]`` bool, the mask in image pixels, on the device that computed it."""
    box: tuple[int, int, int, int]
    """XYXY pixels around the mask, ends exclusive; ``(0, 0, 0, 0)`` if the mask is empty."""
    score: float
    """Mean of the refined mask's probability over its own pixels, in [0, 1]; 0 if the mask is empty."""
    presence: float = 1.0
    """Probability in [0, 1] that the object is in the image; 1 if the heads have no presence score."""
    absent: bool = False
    """Whether the object is absent: ``presence`` is below the threshold, and the mask is empty."""

    @cached_property
    def mask(self) -> np.ndarray:
        """``[H, W]`` bool, in image pixels; copied from the device at the first access."""
        return self.pixels.cpu().numpy()


@dataclass(frozen=True)
class StageSeconds:
    """Wall-clock seconds of each stage. ``image`` is close to zero for a command about an image whose features are cached."""

    image: float = 0.0
    lmm: float = 0.0
    keywords: float = 0.0
    mask_head: float = 0.0
    refiner: float = 0.0

    @property
    def total(self) -> float:
        """Sum of all stages."""
        return self.image + self.lmm + self.keywords + self.mask_head + self.refiner


@dataclass(frozen=True)
class GroundedAnswer:
    """The LMM's answer, and the masks of the objects that it names."""

    text: str
    phrases: tuple[GroundedPhrase, ...]
    image_height: int
    image_width: int
    seconds: StageSeconds = field(default_factory=StageSeconds)
    left_out: tuple[str, ...] = ()
    """Phrases without a mask because there were more than ``max_phrases``, in the order of the text."""
    reason: str = ""
    """Why no phrase of the answer was picked, in one sentence; empty if some were, or if it names nothing."""
