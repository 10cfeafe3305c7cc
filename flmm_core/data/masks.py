"""Converts the masks of data sets into compressed COCO RLE.

pycocotools checks neither RLEs nor polygons: it reads past the end of short ones. Everything that comes from a file passes
:func:`segmentation_rle` or :func:`polygon_rle` before pycocotools sees it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

_MOST_PIXELS = 2**31
"""Limit of the counts of pycocotools."""
_LONGEST_NUMBER = 8
"""Most characters of a number in a compressed RLE: five bits each, for more than 32 bits."""


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
        ValueError: it is none of these, is damaged, covers no pixel, or is of another size than the image.
    """
    if not all(isinstance(side, int) and side > 0 for side in (height, width)) or height * width >= _MOST_PIXELS:
        raise ValueError(f"image: expected height and width in pixels, got {height!r:.40} and {width!r:.40}")
    if isinstance(segmentation, dict):
        rle = _checked_rle(segmentation, height, width)
    elif isinstance(segmentation, list):
        rle = _polygons_rle(segmentation, height, width)
    else:
        raise ValueError(f"segmentation: expected polygons or RLE, got {type(segmentation).__name__}")
    if not coco_mask.area(rle):
        raise ValueError("segmentation: expected at least one pixel of the image, got none")
    return rle


def polygon_rle(corners: Sequence[Sequence[float]], height: int, width: int) -> dict[str, Any]:
    """Compressed RLE of a polygon of corners ``(x, y)`` in pixels.

    Raises:
        ValueError: fewer than three corners, one that is no pair of numbers, or none of its pixels in the image.
    """
    if not all(isinstance(corner, list | tuple) and len(corner) == 2 for corner in corners):
        raise ValueError("polygon: expected corners [x, y], got others")
    return segmentation_rle([list(chain.from_iterable(corners))], height, width)


def union_rle(rles: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Union of checked RLEs of one image.

    Raises:
        ValueError: none is given.
    """
    if not rles:
        raise ValueError("masks: expected at least one, got none")
    return coco_mask.merge(list(rles))


def _checked_rle(rle: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    """The RLE, compressed, if its counts fill the size of the image."""
    size, counts = rle.get("size"), rle.get("counts")
    if size != [height, width] and size != (height, width):
        got = "x".join(map(str, size)) if isinstance(size, list | tuple) else f"{size!r:.40}"
        raise ValueError(f"mask: expected {height}x{width} (height x width), the size of the image, got {got:.60}")
    if isinstance(counts, str | bytes):
        numbers = _decompressed(counts)
    elif isinstance(counts, list) and all(type(count) is int for count in counts):
        numbers = counts
    else:
        raise ValueError("mask: expected counts of an RLE, a list of whole numbers or a string, got something else")
    # Python's integers: a sum in NumPy's could wrap to the right one.
    if any(number < 0 for number in numbers) or sum(numbers) != height * width:
        got = "a negative count" if any(number < 0 for number in numbers) else f"counts of {sum(numbers)!r:.20}"
        raise ValueError(f"mask: expected counts of {height * width} pixels together, got {got}")
    if isinstance(counts, list):
        return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
    return {"size": [height, width], "counts": counts}


def _decompressed(text: str | bytes) -> list[int]:
    """The counts of a compressed RLE.

    Each character holds five bits of a number, lowest first, and a bit that says whether it goes on; the last one's highest bit
    is the sign. From the fourth number on, the difference from the count before the previous one is stored.

    Raises:
        ValueError: it has other characters, or is cut off.
    """
    codes = np.frombuffer(text.encode("utf-8") if isinstance(text, str) else text, np.uint8).astype(np.int64) - 48
    ends = np.flatnonzero(codes & 32 == 0)
    if not codes.size or codes.min() < 0 or codes.max() > 63 or not ends.size or ends[-1] != codes.size - 1:
        raise ValueError("mask: expected counts of a compressed RLE, got characters that are none, or a part of them")
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if lengths.max() > _LONGEST_NUMBER:
        raise ValueError("mask: expected counts of a compressed RLE, got a number that is too long")
    places = np.arange(codes.size) - np.repeat(starts, lengths)
    numbers = np.add.reduceat((codes & 31) << (5 * places), starts)
    numbers -= np.where(codes[ends] & 16, 1 << (5 * lengths), 0)
    for first in (1, 2):
        numbers[first::2] = np.cumsum(numbers[first::2])
    return numbers.tolist()


def _polygons_rle(polygons: list[Any], height: int, width: int) -> dict[str, Any]:
    """The union of polygons whose corners lie in the image or not far from it."""
    if not polygons or not all(isinstance(polygon, list) and len(polygon) >= 6 for polygon in polygons):
        raise ValueError("segmentation: expected polygons of at least three corners, got some with fewer, or none")
    longer = max(height, width)
    for polygon in polygons:
        if len(polygon) % 2 or not all(type(n) is int or (type(n) is float and math.isfinite(n)) for n in polygon):
            raise ValueError("segmentation: expected polygons of pairs of finite numbers, got others")
        # pycocotools walks along the outline, also outside of the image.
        if min(polygon) < -longer or max(polygon) > 2 * longer:
            raise ValueError(
                f"segmentation: expected corners in an image of {height}x{width} (height x width), got numbers from"
                f" {min(polygon)!r:.20} to {max(polygon)!r:.20}"
            )
    return coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
