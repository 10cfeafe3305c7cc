"""Draws a grounded answer on its image: mask tints, contours, labels, and a panel with command, answer and legend.

Everything is drawn with NumPy, OpenCV and Pillow's own font, so it looks the same on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from flmm_core.drawing.labels import Box, draw_labels
from flmm_core.drawing.panel import answer_panel
from flmm_core.drawing.style import PANEL, Color, color_of, text_scale
from flmm_core.types import GroundedAnswer, GroundedPhrase

_TINT = 0.32
"""Weight of the colour inside a mask."""
_MOST_SCALE = 8
_LEAST_WIDTH = 960
"""Long side, in pixels, to which small images are enlarged, so that labels are small compared with objects."""
_MOST_LENGTH = 8192
"""Long side, in pixels, to which images are reduced whose short side is under half of :data:`_LEAST_WIDTH`."""


def draw_overlay(
    image: np.ndarray, answer: GroundedAnswer, *, command: str = "", fault: str = "", details: Sequence[str] = ()
) -> np.ndarray:
    """Draw ``answer`` on ``image``.

    Args:
        image: ``[H, W, 3]`` uint8 RGB.
        answer: its masks are ``[H, W]``.
        command: the user's words, shown below the image.
        fault: error or warning, shown below the answer.
        details: an additional remark for each phrase in the legend, for instance its IoU.

    Returns:
        ``[H', W', 3]`` uint8 RGB: the image, enlarged if it is small and reduced if it is long and thin, with a panel below.
    """
    if image.shape[:2] != (answer.image_height, answer.image_width):
        raise ValueError(
            f"expected an image of {answer.image_height}x{answer.image_width} (height x width), got "
            f"{image.shape[0]}x{image.shape[1]}"
        )
    height, width = _drawn_size(*image.shape[:2])
    canvas = _resized(image, height, width)
    masks = [phrase.mask for phrase in answer.phrases]
    for index in sorted(range(len(masks)), key=lambda i: -int(masks[i].sum())):
        if masks[index].any():
            _tint(canvas, _resized_mask(masks[index], height, width), color_of(index))
    drawn = Image.fromarray(canvas)
    del canvas  # of a large image, every copy counts
    scales = width / image.shape[1], height / image.shape[0]
    draw_labels(drawn, answer.phrases, [_scaled_box(phrase, scales) for phrase in answer.phrases])
    panel = answer_panel(max(width, _LEAST_WIDTH // 2), text_scale(width, height), answer, command, fault, details)
    sheet = Image.new("RGB", (panel.width, height + panel.height), PANEL)
    sheet.paste(drawn, ((panel.width - width) // 2, 0))
    del drawn
    sheet.paste(panel, (0, height))
    return np.asarray(sheet)


def contact_sheet(images: Sequence[np.ndarray], *, columns: int = 3, tile_width: int = 640) -> np.ndarray:
    """Arrange images in rows.

    Args:
        images: ``[H, W, 3]`` uint8 RGB each, of any size.
        columns: images in a row.
        tile_width: width of each, in pixels.

    Returns:
        ``[H', W', 3]`` uint8 RGB.

    Raises:
        ValueError: there are no images.
    """
    if not images:
        raise ValueError("expected at least one image, got none")
    gap = 12
    columns = min(columns, len(images))
    tiles = [_tile(image, tile_width) for image in images]
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(tile.shape[0] for tile in row) for row in rows]
    sheet = np.full((sum(heights) + gap * (len(rows) + 1), columns * (tile_width + gap) + gap, 3), (44, 47, 55), np.uint8)
    top = gap
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            left = gap + column * (tile_width + gap)
            sheet[top : top + height, left : left + tile_width] = PANEL
            sheet[top : top + tile.shape[0], left : left + tile_width] = tile
        top += height + gap
    return sheet


def _drawn_size(height: int, width: int) -> tuple[int, int]:
    """Height and width at which an image is drawn: small ones are enlarged, long and thin ones reduced."""
    longest, shortest = max(height, width), min(height, width)
    if longest > _MOST_LENGTH and shortest < _LEAST_WIDTH // 2:
        return max(1, round(height * _MOST_LENGTH / longest)), max(1, round(width * _MOST_LENGTH / longest))
    scale = min(max(1, round(_LEAST_WIDTH / longest)), _MOST_SCALE)
    return height * scale, width * scale


def _tile(image: np.ndarray, width: int) -> np.ndarray:
    """An image of the width of a tile; a tall one is narrower, so that it is at most four times as high as that."""
    factor = min(width / image.shape[1], 4 * width / image.shape[0])
    return _resized(image, max(1, round(image.shape[0] * factor)), max(1, round(image.shape[1] * factor)))


def _resized(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """A copy ``[height, width, 3]``."""
    if (height, width) == image.shape[:2]:
        return image.copy()
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if width < image.shape[1] else cv2.INTER_CUBIC)


def _resized_mask(mask: np.ndarray, height: int, width: int) -> np.ndarray:
    """A mask ``[H, W]`` as ``[height, width]`` bool; enlarged it has smooth edges instead of steps."""
    if (height, width) == mask.shape:
        return mask
    if width <= mask.shape[1] and height <= mask.shape[0]:
        return cv2.resize(mask.astype(np.uint8) * 255, (width, height), interpolation=cv2.INTER_AREA) > 0
    soft = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    return cv2.GaussianBlur(soft, (0, 0), height / mask.shape[0] * 0.4) > 0.5


def _scaled_box(phrase: GroundedPhrase, scales: tuple[float, float]) -> Box | None:
    """The box of a phrase's mask in pixels of the drawing; None for an empty mask."""
    if not phrase.mask.any():
        return None
    x0, y0, x1, y1 = phrase.box
    return x0 * scales[0], y0 * scales[1], x1 * scales[0], y1 * scales[1]


def _tint(canvas: np.ndarray, mask: np.ndarray, color: Color) -> None:
    """Tint the pixels of a mask and draw its contour, in place."""
    tints = (np.arange(256)[:, None] * (1 - _TINT) + np.array(color) * _TINT).astype(np.uint8)
    for channel in range(3):
        plane = canvas[..., channel]
        np.copyto(plane, tints[:, channel][plane], where=mask)
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, contours, -1, (255, 255, 255), 5, cv2.LINE_AA)
    cv2.drawContours(canvas, contours, -1, color, 3, cv2.LINE_AA)
