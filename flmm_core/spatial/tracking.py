"""Tracks masks from image to image by dense optical flow, which is cheap and reliable for a few seconds.

The flow is DIS (Kroeger et al., "Fast Optical Flow using Dense Inverse Search", ECCV 2016) as OpenCV has it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import cv2
import numpy as np
import torch

from flmm_core.types import GroundedAnswer, GroundedPhrase, StageSeconds

_SIDE = 320
"""Longest side of the images between which the flow is computed, pixels."""
_LOST = 25.0
"""Mean difference of grey values (0..255) between an object and its origin by the flow, above which tracking fails."""


class MaskTracker:
    """Moves the masks of an answer along with a sequence of images.

    Args:
        pixels: ``[H, W, 3]`` uint8 RGB, the image of the answer.
        answer: its phrases are tracked; absent ones stay absent.
    """

    def __init__(self, pixels: np.ndarray, answer: GroundedAnswer) -> None:
        self._answer = answer
        self._grey = _small_grey(pixels)
        self._masks: list[Any] = [np.where(phrase.mask, 255, 0).astype(np.uint8) for phrase in answer.phrases]
        """Soft masks ``[H, W]`` uint8, so that repeated resampling does not degrade the outlines."""
        self._flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)

    def follow(self, pixels: np.ndarray) -> GroundedAnswer | None:
        """Move the masks to the next image.

        Args:
            pixels: ``[H, W, 3]`` uint8 RGB, the next image.

        Returns:
            The answer with the moved masks; None if the image has another size or an object was lost.
        """
        height, width = self._answer.image_height, self._answer.image_width
        if pixels.shape[:2] != (height, width):
            return None
        grey = _small_grey(pixels)
        origin = _grid(grey) + self._flow.calc(grey, self._grey, np.zeros((*grey.shape, 2), np.float32))
        before = cv2.remap(self._grey, origin[..., 0], origin[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        whole = cv2.resize(origin, (width, height), interpolation=cv2.INTER_LINEAR)
        # Pixel centres lie at half-integers: (x + 0.5) * scale - 0.5.
        scale = np.array([width / grey.shape[1], height / grey.shape[0]], np.float32)
        x, y = np.moveaxis((whole + 0.5) * scale - 0.5, 2, 0).copy()
        masks = [cv2.remap(mask, x, y, cv2.INTER_LINEAR, borderValue=0) for mask in self._masks]
        difference = cv2.absdiff(grey, before)
        for mask in masks:
            inside = cv2.resize(mask, grey.shape[::-1], interpolation=cv2.INTER_AREA) > 127
            if inside.any() and difference[inside].mean() > _LOST:
                return None
        self._grey, self._masks = grey, masks
        phrases = tuple(_moved(phrase, mask) for phrase, mask in zip(self._answer.phrases, masks, strict=True))
        return replace(self._answer, phrases=phrases, seconds=StageSeconds())


def _moved(phrase: GroundedPhrase, soft: np.ndarray) -> GroundedPhrase:
    mask = soft > 127
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    box = (x, y, x + width, y + height) if width else (0, 0, 0, 0)
    return replace(phrase, pixels=torch.from_numpy(mask), box=box, score=phrase.score if width else 0.0)


def _small_grey(pixels: np.ndarray) -> np.ndarray:
    height, width = pixels.shape[:2]
    scale = min(1.0, _SIDE / max(height, width))
    # DIS needs at least 16 pixels in both directions.
    size = max(16, round(width * scale)), max(16, round(height * scale))
    return cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), size, interpolation=cv2.INTER_AREA)


def _grid(grey: np.ndarray) -> np.ndarray:
    """``[h, w, 2]`` float32: each pixel's own x and y."""
    rows, columns = np.mgrid[: grey.shape[0], : grey.shape[1]].astype(np.float32)
    return np.stack([columns, rows], axis=2)
