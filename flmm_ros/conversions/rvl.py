"""RVL, a coding of depth images (Wilson, "Fast Lossless Depth Image Compression", 2017).

Numbers are written three bits at a time, the lowest first, each with a bit that says whether more follow. Eight such groups
make a little-endian word of 32 bits, the first group in its highest bits. An image is a sequence of runs: a number of zeros, a
number of other pixels, and for each of these its difference to the last one that was not zero, the sign in the lowest bit.
"""

from __future__ import annotations

import numpy as np

_GROUPS = 10
"""Largest number of groups of a number, that of an int32."""


def decode_rvl(data: bytes, pixels: int) -> np.ndarray:
    """Decode an image.

    Args:
        data: the words; further bytes are ignored.
        pixels: of the image.

    Returns:
        ``[pixels]`` uint16.

    Raises:
        ValueError: the data end early, or their runs do not fit the image.
    """
    numbers = _numbers(data[: 4 * pixels + 64])  # no coding of so many pixels is longer
    image = np.zeros(pixels, np.uint16)
    filled = np.zeros(pixels, bool)
    is_difference = np.zeros(len(numbers), bool)
    pixel = place = 0
    while pixel < pixels:
        if place + 2 > len(numbers):
            raise ValueError(f"RVL: expected {pixels} pixels, got {pixel}")
        pixel += int(numbers[place])
        end, place = pixel + int(numbers[place + 1]), place + 2
        behind = place + end - pixel
        if end > pixels or behind > len(numbers):
            raise ValueError(f"RVL: expected runs of {pixels} pixels with all of their data, got other runs")
        filled[pixel:end] = True
        is_difference[place:behind] = True
        pixel, place = end, behind
    coded = numbers[is_difference]
    image[filled] = np.cumsum((coded >> 1) ^ -(coded & 1), dtype=np.int64) & 0xFFFF
    return image


def _numbers(data: bytes) -> np.ndarray:
    """``[k]`` int32: the numbers of the words."""
    words = np.frombuffer(data[: len(data) // 4 * 4], "<u4")
    groups = np.empty(8 * len(words), np.uint8)
    for place in range(8):
        groups[place::8] = (words >> (28 - 4 * place)) & 15
    ends = np.flatnonzero(groups < 8)
    starts = np.concatenate([[0], ends[:-1] + 1]) if len(ends) else ends
    lengths = ends - starts + 1
    if len(lengths) and lengths.max() > _GROUPS:
        raise ValueError(f"RVL: expected numbers of at most {_GROUPS} groups, got {lengths.max()}")
    numbers = np.zeros(len(ends), np.int32)
    for place in range(int(lengths.max(initial=0))):
        longer = lengths > place
        numbers[longer] |= (groups[starts[longer] + place].astype(np.int32) & 7) << (3 * place)
    return numbers
