"""Draws attention maps beside the masks that come of them: one row for each phrase, one column for each head."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flmm_core.evaluation.attention_maps import AttentionRow, HeadRanking

CELL = 232
"""Width of a picture in the figure, pixels."""
GAP = 10
_HEADER, _TITLE, _NOTE = 62, 34, 22
_PAPER, _INK, _FAINT = (255, 255, 255), (24, 26, 32), (104, 110, 122)
_GOOD, _BAD = (0, 128, 60), (190, 40, 30)
_TRUTH, _FOUND = (40, 230, 90), (255, 92, 70)


def draw_attention(rows: Sequence[AttentionRow], ranking: HeadRanking, channels: Sequence[int]) -> np.ndarray:
    """Draw the figure.

    Args:
        rows: their maps are of ``channels``.
        ranking: of all heads, on other pictures.
        channels: the heads shown.

    Returns:
        ``[H, W, 3]`` uint8 RGB.
    """
    if not rows:
        raise ValueError("rows: expected at least one phrase to draw, got none")
    heads = [(ranking.name(c), f"peak on the thing: {ranking.accuracy(c).value:.0%}") for c in channels]
    columns = [("picture", "true mask outlined"), *heads, ("U-Net", "coarse mask"), ("SAM", "refined mask")]
    blocks = [_row(row) for row in rows]
    width = GAP + len(columns) * (CELL + GAP)
    sheet = Image.new("RGB", (width, _HEADER + sum(block.height + GAP for block in blocks)), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, (title, note) in enumerate(columns):
        x = GAP + index * (CELL + GAP)
        draw.text((x, 12), title, _INK, _font(17))
        draw.text((x, 36), note, _FAINT, _font(13))
    top = _HEADER
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height + GAP
    return np.asarray(sheet)


def _row(row: AttentionRow) -> Image.Image:
    tiles: list[tuple[np.ndarray, str, tuple[int, int, int]]] = [
        (_outlined(row.picture, row.truth, _TRUTH), _area(row), _FAINT)
    ]
    for index in range(len(row.maps)):
        hit = row.truth is not None and bool(row.truth[row.peak(index)[1], row.peak(index)[0]])
        color = _FAINT if row.truth is None else _GOOD if hit else _BAD
        tiles.append((_heat(row, index, color), _percent(row.mass(index), "of attention on it"), color))
    for mask in (row.coarse, row.refined):
        tiles.append((_outlined(_tinted(row.picture, mask), row.truth, _TRUTH), _percent(row.iou(mask), "IoU"), _FAINT))
    height = max(tile.shape[0] for tile, _, _ in tiles)
    block = Image.new("RGB", (GAP + len(tiles) * (CELL + GAP), _TITLE + height + _NOTE), _PAPER)
    draw = ImageDraw.Draw(block)
    said = f"   {row.question}  |  {row.answer}" if row.question else "   (given phrase)"
    draw.text((GAP, 8), _sayable(f"“{row.phrase}”"), _INK, _font(18))
    draw.text((GAP + draw.textlength(_sayable(f"“{row.phrase}”"), _font(18)), 11), _sayable(said), _FAINT, _font(15))
    for index, (tile, note, color) in enumerate(tiles):
        x = GAP + index * (CELL + GAP)
        block.paste(Image.fromarray(tile), (x, _TITLE))
        draw.text((x, _TITLE + tile.shape[0] + 4), note, color, _font(13))
    return block


def _area(row: AttentionRow) -> str:
    return _percent(float("nan") if row.truth is None else float(row.truth.mean()), "of the picture")


def _percent(value: float, what: str) -> str:
    return "" if math.isnan(value) else f"{value:.0%} {what}"


def _heat(row: AttentionRow, index: int, color: tuple[int, int, int]) -> np.ndarray:
    """The picture in grey under a map's heat, with a cross at the peak."""
    size = _size(row.picture)
    heat = cv2.resize(row.maps[index], size, interpolation=cv2.INTER_LINEAR)
    heat = np.clip(heat / max(float(row.maps[index].max()), 1e-12), 0, 1)
    grey = cv2.cvtColor(cv2.resize(row.picture, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY).astype(np.float32)
    ramp = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1].astype(np.float32)
    share = (0.25 + 0.65 * heat)[..., None]
    tile = np.ascontiguousarray((grey[..., None] * 0.8 * (1 - share) + ramp * share).clip(0, 255).astype(np.uint8))
    x, y = row.peak(index)
    scale = size[0] / row.picture.shape[1]
    at = (round(x * scale), round(y * scale))
    cv2.drawMarker(tile, at, (255, 255, 255), cv2.MARKER_CROSS, 17, 4, cv2.LINE_AA)
    cv2.drawMarker(tile, at, color, cv2.MARKER_CROSS, 15, 2, cv2.LINE_AA)
    return tile


def _outlined(picture: np.ndarray, mask: np.ndarray | None, color: tuple[int, int, int]) -> np.ndarray:
    size = _size(picture)
    tile = np.ascontiguousarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))
    if mask is not None:
        small = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        contours, _ = cv2.findContours(small, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(tile, contours, -1, color, 1, cv2.LINE_AA)
    return tile


def _tinted(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    tinted = picture.copy()
    tinted[mask] = (0.45 * picture[mask] + 0.55 * np.array(_FOUND)).astype(np.uint8)
    return tinted


def _size(picture: np.ndarray) -> tuple[int, int]:
    return CELL, max(1, round(picture.shape[0] * CELL / picture.shape[1]))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _sayable(text: str) -> str:
    return "".join(sign if sign.isprintable() else " " for sign in text)
