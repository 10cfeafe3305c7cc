"""Converts the masks of data sets into compressed COCO RLE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask


def mask_rle(mask: np.ndarray) -> dict[str, Any]:
    """Compressed RLE of a mask ``[H, W]``, bool or of zeros and ones."""
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def segmentation_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Compressed RLE of a segmentation as COCO defines it.

    Args:
        segmentation: polygons ``[[x0, y0, x1, y1, ...], ...]`` in pixels, whose union is meant; or RLE, compressed or not.
        height: of the image.
        width: of the image.

    Raises:
        ValueError: it is none of these, is empty, or is of another size than the image.
    """
    if isinstance(segmentation, dict):
        counts = segmentation["counts"]
        rle = coco_mask.frPyObjects(segmentation, height, width) if isinstance(counts, list) else segmentation
        require_size(rle, height, width)
        return rle
    if not isinstance(segmentation, list):
        raise ValueError(f"segmentation: expected polygons or RLE, got {type(segmentation).__name__}")
    polygons = [polygon for polygon in segmentation if isinstance(polygon, list) and len(polygon) >= 6]
    if not polygons or len(polygons) < len(segmentation):
        raise ValueError("segmentation: expected polygons of at least three corners, got some with fewer, or none")
    return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))


def polygon_rle(corners: Sequence[Sequence[float]], height: int, width: int) -> dict[str, Any]:
    """Compressed RLE of a polygon of corners ``(x, y)`` in pixels.

    Raises:
        ValueError: fewer than three corners.
    """
    if len(corners) < 3:
        raise ValueError(f"polygon: expected at least three corners, got {len(corners)}")
    return segmentation_rle([[float(number) for corner in corners for number in corner]], height, width)


def union_rle(rles: Sequence[dict[str, Any]], height: int, width: int) -> dict[str, Any]:
    """Union of compressed RLEs of one image.

    Raises:
        ValueError: none is given, or one is of another size than the image.
    """
    if not rles:
        raise ValueError("masks: expected at least one, got none")
    for rle in rles:
        require_size(rle, height, width)
    return coco_mask.merge(list(rles))


def require_size(rle: dict[str, Any], height: int, width: int) -> None:
    """Refuse an RLE of another size than its image."""
    if list(rle["size"]) != [height, width]:
        got = "x".join(map(str, rle["size"]))
        raise ValueError(f"mask: expected {height}x{width} (height x width), the size of the image, got {got}")
