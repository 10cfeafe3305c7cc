"""Draws a grounded answer on its image: mask tints, contours, labels, and a panel with command, answer and legend.

Everything is drawn with NumPy, OpenCV and Pillow's own font, so it looks the same on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image

from flmm_core.drawing.labels import draw_labels
from flmm_core.drawing.panel import answer_panel
from flmm_core.drawing.style import PANEL, Color, color_of
from flmm_core.types import GroundedAnswer

_TINT = 0.32
"""Weight of the colour inside a mask."""
_MOST_SCALE = 8
_LEAST_WIDTH = 960
"""Long side, in pixels, to which small images are enlarged, so that labels are small compared with objects."""


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
        ``[H', W', 3]`` uint8 RGB: the image, enlarged if it is small, with a panel below.
    """
    if image.shape[:2] != (answer.image_height, answer.image_width):
        raise ValueError(
            f"expected an image of {answer.image_height}x{answer.image_width} (height x width), got "
            f"{image.shape[0]}x{image.shape[1]}"
        )
    scale = min(max(1, round(_LEAST_WIDTH / max(image.shape[:2]))), _MOST_SCALE)
    canvas = _enlarged(image, scale)
    masks = [_enlarged_mask(phrase.mask, scale) for phrase in answer.phrases]
    for index in sorted(range(len(masks)), key=lambda i: -int(masks[i].sum())):
        canvas = _tinted(canvas, masks[index], color_of(index))
    drawn = Image.fromarray(canvas)
    draw_labels(drawn, answer.phrases, masks)
    panel = answer_panel(max(drawn.width, _LEAST_WIDTH // 2), answer, command, fault, details)
    sheet = Image.new("RGB", (panel.width, drawn.height + panel.height), PANEL)
    sheet.paste(drawn, ((panel.width - drawn.width) // 2, 0))
    sheet.paste(panel, (0, drawn.height))
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
    tiles = [_resized(image, tile_width) for image in images]
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


def _resized(image: np.ndarray, width: int) -> np.ndarray:
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    shrinks = width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def _enlarged(image: np.ndarray, scale: int) -> np.ndarray:
    if scale == 1:
        return image.copy()
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)


def _enlarged_mask(mask: np.ndarray, scale: int) -> np.ndarray:
    """A mask ``[H, W]`` enlarged to ``[scale * H, scale * W]`` bool, with smooth edges instead of steps."""
    if scale == 1 or not mask.any():
        return np.kron(mask, np.ones((scale, scale), bool)).astype(bool)
    soft = cv2.resize(mask.astype(np.float32), None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    return cv2.GaussianBlur(soft, (0, 0), scale * 0.4) > 0.5


def _tinted(canvas: np.ndarray, mask: np.ndarray, color: Color) -> np.ndarray:
    canvas = canvas.copy()
    canvas[mask] = (canvas[mask] * (1 - _TINT) + np.array(color) * _TINT).astype(np.uint8)
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(canvas, contours, -1, (255, 255, 255), 5, cv2.LINE_AA)
    cv2.drawContours(canvas, contours, -1, color, 3, cv2.LINE_AA)
    return canvas
