"""Images of 16 bits for each channel as people see them: cameras of 10, 12 or 14 bits leave the high ones empty."""

from __future__ import annotations

import cv2
import numpy as np
from PIL import Image

DEPTHS = (10, 12, 14, 16)
"""Significant bits of the 16-bit samples of common cameras."""


def to_8_bits(samples: np.ndarray, bits: int = 0) -> np.ndarray:
    """Reduce samples to 8 bits: the largest value of ``bits`` bits, and every larger one, becomes 255.

    Args:
        samples: ``[H, W]`` uint16, or ``[H, W, channels]``, of which the fourth is alpha.
        bits: significant bits of a sample, 1 to 16. 0: the smallest of :data:`DEPTHS` that holds the brightest one; alpha does
            not count, because drivers fill it with arbitrary values.

    Returns:
        uint8 of the same shape.
    """
    if bits == 0:
        colours = samples if samples.ndim == 2 else samples[..., :3]
        brightest = int(colours.max(initial=0))
        bits = next(depth for depth in DEPTHS if brightest < 2**depth)
    # OpenCV takes any number of channels only as columns.
    rows = np.ascontiguousarray(samples).reshape(len(samples), -1)
    return np.asarray(cv2.convertScaleAbs(rows, alpha=255 / (2**bits - 1))).reshape(samples.shape)


def has_16_bit_colours(image: Image.Image) -> bool:
    """Whether a PIL image that is not loaded yet holds 16 bits for each colour, of which Pillow would keep the upper 8."""
    return image.mode in ("RGB", "RGBA", "LA") and any(";16" in str(tile.args) for tile in getattr(image, "tile", ()))


def read_16_bit_colours(content: bytes) -> np.ndarray:
    """Read the content of such an image file (PNG, TIFF).

    Returns:
        ``[H, W, 3]`` uint16 RGB, or ``[H, W, 4]`` with alpha.

    Raises:
        ValueError: OpenCV cannot read it.
    """
    found = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if found is None or found.dtype != np.uint16 or found.ndim != 3:
        raise ValueError("expected colours of 16 bits, got others")
    return np.asarray(cv2.cvtColor(found, cv2.COLOR_BGRA2RGBA if found.shape[2] == 4 else cv2.COLOR_BGR2RGB))
