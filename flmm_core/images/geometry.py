"""Arithmetic of resizing, padding and un-padding, for the whole project.

Sizes truncate with ``int()`` and un-padded sizes round with ``int(x + 0.5)``, as the published heads were trained.
This file is independent of models.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flmm_core.types import ImageGeometry


def long_side_geometry(
    *, image_height: int, image_width: int, frame: int, grid_height: int, grid_width: int, smallest: int = 1
) -> ImageGeometry:
    """An image resized so that its long side fills a square frame, and centred in it.

    Args:
        image_height: pixels.
        image_width: pixels.
        frame: side of the square frame, pixels.
        grid_height: image tokens from top to bottom of the frame.
        grid_width: image tokens from left to right.
        smallest: least height and width of the image in the frame, pixels.
    """
    longest = max(image_height, image_width)
    inner_height = max(smallest, int(image_height * frame / longest))
    inner_width = max(smallest, int(image_width * frame / longest))
    return ImageGeometry(
        image_height=image_height,
        image_width=image_width,
        padded_height=frame,
        padded_width=frame,
        offset_y=(frame - inner_height) // 2,
        offset_x=(frame - inner_width) // 2,
        inner_height=inner_height,
        inner_width=inner_width,
        grid_height=grid_height,
        grid_width=grid_width,
    )


def stretched_geometry(image: Image.Image, *, frame: tuple[int, int], grid: tuple[int, int]) -> ImageGeometry:
    """An image that is stretched to its frame.

    Args:
        image: of any size.
        frame: height and width, pixels.
        grid: image tokens from top to bottom and from left to right of the frame.
    """
    return ImageGeometry(
        image_height=image.height,
        image_width=image.width,
        padded_height=frame[0],
        padded_width=frame[1],
        offset_y=0,
        offset_x=0,
        inner_height=frame[0],
        inner_width=frame[1],
        grid_height=grid[0],
        grid_width=grid[1],
    )


def place_in_frame(
    image: Image.Image, geometry: ImageGeometry, *, background: tuple[int, int, int], resample: int
) -> np.ndarray:
    """Resize an RGB image and put it into its frame.

    Args:
        image: RGB.
        geometry: where the image goes.
        background: RGB 0..255 of the padding.
        resample: a ``PIL.Image.Resampling`` number.

    Returns:
        ``[padded_height, padded_width, 3]`` uint8.
    """
    size = (geometry.inner_width, geometry.inner_height)
    resized = image if image.size == size else image.resize(size, Image.Resampling(resample))
    frame = Image.new("RGB", (geometry.padded_width, geometry.padded_height), background)
    frame.paste(resized, (geometry.offset_x, geometry.offset_y))
    return np.asarray(frame)


def unpadded_range(offset: int, inner: int, padded: int, size: int) -> tuple[int, int]:
    """Where the image lies along one axis of a map that covers the padded frame.

    Args:
        offset: padding before the image, frame pixels.
        inner: the image's size inside the frame, frame pixels.
        padded: the frame's size, pixels.
        size: the map's size, cells.

    Returns:
        Half-open range of cells; at least one cell, inside the map.
    """
    start = min(int(offset * size / padded), size - 1)
    count = max(1, int(inner * size / padded + 0.5))
    return start, min(start + count, size)


def unpad(maps: Tensor, geometry: ImageGeometry) -> Tensor:
    """Cut the padding off maps ``[..., mh, mw]`` that cover the padded frame; the result covers exactly the image."""
    top, bottom = unpadded_range(geometry.offset_y, geometry.inner_height, geometry.padded_height, maps.shape[-2])
    left, right = unpadded_range(geometry.offset_x, geometry.inner_width, geometry.padded_width, maps.shape[-1])
    return maps[..., top:bottom, left:right]


def mask_box(mask: Tensor) -> Tensor:
    """XYXY pixels around a ``[H, W]`` bool mask, ends exclusive, ``[4]`` int64; zeros if it is empty. Never waits for a GPU."""
    edges = []
    for along in (mask.any(dim=0), mask.any(dim=1)):
        marked = along.long()
        first, behind = marked.argmax(), len(marked) - marked.flip(0).argmax()
        edges.append(torch.stack([first, behind]) * marked.amax())
    (left, right), (top, bottom) = edges
    return torch.stack([left, top, right, bottom])
