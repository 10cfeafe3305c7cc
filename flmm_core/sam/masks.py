"""Prompts that go into SAM's mask decoder, and the masks that come out of it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SamPrompts:
    """Prompts of ``n`` phrases in the frame of SAM's square input."""

    masks: Tensor
    """``[n, 1, mh, mw]`` logits over the padded input."""
    boxes: Tensor
    """``[n, 4]`` XYXY pixels of SAM's input."""
    texts: tuple[Tensor, ...]
    """``n`` tensors ``[t, 256]``, one row for each token of the phrase."""
    points: Tensor
    """``[n, p, 2]`` float32, x and y of pixels of SAM's input, as SAM counts them: 0 is the centre of the first."""
    labels: Tensor
    """``[n, p]`` float32: 1 for a point inside the mask, -1 where there is none, as SAM's prompt encoder counts."""


@dataclass(frozen=True)
class RefinedMasks:
    """Output of the mask decoder for ``n`` phrases, before it is enlarged to the image."""

    low_res: Tensor
    """``[n, m, m]`` logits over the padded input."""
    iou: Tensor
    """``[n]`` IoU that SAM predicts for each mask."""


@dataclass(frozen=True)
class RefinedMask:
    """The mask of one phrase at image size, with its box and score."""

    mask: Tensor
    """``[H, W]`` bool in image pixels, on the device that computed it."""
    box: tuple[int, int, int, int]
    """XYXY pixels around the mask, ends exclusive; ``(0, 0, 0, 0)`` if the mask is empty."""
    score: float
    """Mean of the mask's probability over its own pixels, in [0, 1]; 0 if the mask is empty."""
