"""Draws attention maps beside the masks computed from them: one row for each phrase, one column for each head.

The figure explains its columns and marks to readers who have not seen one before. A chart shows how well each head points.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from flmm_core.common.plain_text import printable
from flmm_core.images.masks import Overlap, peaks, share_on

CELL = 232
"""Width of an image in the figure, pixels."""
GAP = 10
_TITLE, _NOTE, _COLUMNS = 34, 22, 62
_PAPER, _INK, _FAINT = (255, 255, 255), (24, 26, 32), (104, 110, 122)
_GOOD, _BAD = (0, 128, 60), (190, 40, 30)
_TRUTH, _FOUND = (40, 230, 90), (255, 92, 70)
_MOST_NUMBERS = 16
"""Largest number of heads in a layer for which the chart has room for numbers."""


@dataclass(frozen=True)
class AttentionRow:
    """One phrase of an answer: attention maps of some heads, and its masks."""

    image: np.ndarray
    """``[H, W, 3]`` uint8 RGB."""
    question: str
    """Empty in refer mode."""
    answer: str
    phrase: str
    maps: np.ndarray
    """``[k, h, w]`` float32 attention of the shown heads, cut to the image."""
    coarse: np.ndarray
    """``[H, W]`` bool: the U-Net's mask."""
    refined: np.ndarray
    """``[H, W]`` bool: SAM's mask."""
    truth: np.ndarray | None
    """``[H, W]`` bool; None if it is not known."""

    def peak(self, index: int) -> tuple[int, int]:
        """``(x, y)`` pixel where one of the maps is largest."""
        return peaks(self.maps[index : index + 1], *self.image.shape[:2])[0]

    def attention_share(self, index: int) -> float:
        """Share of one map's attention to the image that lies on the true object; NaN if that is not known."""
        return float("nan") if self.truth is None else float(share_on(self.maps[index : index + 1], self.truth)[0])

    def iou(self, mask: np.ndarray) -> float:
        """IoU of a mask with the truth; NaN if that is not known."""
        return float("nan") if self.truth is None else Overlap.of(mask, self.truth).iou


@dataclass(frozen=True)
class HeadChart:
    """How often each attention head of an LMM points at named objects, on other images than those of the figure."""

    pointing: np.ndarray
    """``[l, q]`` share of the names for which the peak of the head's map lies on the named object, by layer and query head."""
    names: int
    """Count of the names."""
    random_pointing: float
    """Share of the names for which a random point would lie on the object."""

    def layer_and_head(self, channel: int) -> tuple[int, int]:
        """Layer and head of a channel, both counted from 0, as in the code of transformers."""
        return channel // self.pointing.shape[1], channel % self.pointing.shape[1]


def draw_attention(rows: Sequence[AttentionRow], chart: HeadChart, channels: Sequence[int]) -> np.ndarray:
    """Draw the figure.

    Args:
        rows: their maps are of ``channels``.
        chart: of all heads.
        channels: the heads shown.

    Returns:
        ``[H, W, 3]`` uint8 RGB.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("rows: expected at least one phrase to draw, got none")
    width = GAP + (len(channels) + 3) * (CELL + GAP)
    blocks = [_introduction(width, chart), _column_titles(width, chart, channels), *map(_row, rows)]
    blocks.append(_head_chart(width, chart))
    sheet = Image.new("RGB", (width, sum(block.height + GAP for block in blocks)), _PAPER)
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height + GAP
    return np.asarray(sheet)


def _introduction(width: int, chart: HeadChart) -> Image.Image:
    lines = (
        "No mask, box or coordinate ever reached the language model. Each of its attention heads looks at the"
        " image while it reads a name.",
        "Bright: where a head looks.  Cross: where it looks most, green if that is on the named object, red if not.  Green"
        " outline: the true mask.",
        "From the maps of all heads a U-Net makes a coarse mask, and SAM a sharp one.  A random point would lie on the named"
        f" object for {chart.random_pointing:.0%} of the names.",
    )
    pieces = [piece for line in lines for piece in _wrapped(line, _font(15), width - 2 * GAP)]
    block = Image.new("RGB", (width, 52 + 22 * len(pieces)), _PAPER)
    draw = ImageDraw.Draw(block)
    draw.text((GAP, 10), "Where a frozen language model looks when it names an object", _INK, _font(24))
    for index, piece in enumerate(pieces):
        draw.text((GAP, 48 + 22 * index), piece, _FAINT, _font(15))
    return block


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _column_titles(width: int, chart: HeadChart, channels: Sequence[int]) -> Image.Image:
    titles = [("image", "the named object outlined")]
    for channel in channels:
        layer, head = chart.layer_and_head(channel)
        titles.append((f"layer {layer}, head {head}", f"peak on the object: {float(chart.pointing[layer, head]):.0%} of names"))
    titles += [("U-Net", "coarse mask from all maps"), ("SAM", "refined mask")]
    block = Image.new("RGB", (width, _COLUMNS - GAP), _PAPER)
    draw = ImageDraw.Draw(block)
    for index, (title, note) in enumerate(titles):
        x = GAP + index * (CELL + GAP)
        draw.text((x, 6), title, _INK, _font(17))
        draw.text((x, 30), note, _FAINT, _font(13))
    return block


def _head_chart(width: int, chart: HeadChart) -> Image.Image:
    """Share of names for which each head's peak lies on the named object: a line for each layer, a column for each head."""
    layers, heads = chart.pointing.shape
    numbers = heads <= _MOST_NUMBERS
    cell_width, cell_height = (64, 26) if numbers else (max(4, min(24, (width - 2 * GAP - 70) // heads)), 14)
    left, top = GAP + 70, 62
    block = Image.new("RGB", (width, top + layers * (cell_height + 2) + GAP), _PAPER)
    draw = ImageDraw.Draw(block)
    title = f"All heads: for how many of {chart.names} names the peak lies on the object"
    draw.text((GAP, 6), title, _INK, _font(18))
    for channel in range(layers * heads):
        layer, head = chart.layer_and_head(channel)
        x, y = left + head * (cell_width + 2), top + layer * (cell_height + 2)
        value = float(chart.pointing[layer, head])
        shade = tuple(round(255 + (c - 255) * value) for c in _GOOD)
        draw.rectangle((x, y, x + cell_width, y + cell_height), fill=(shade[0], shade[1], shade[2]))
        if numbers:
            ink = _INK if value < 0.6 else _PAPER
            draw.text((x + cell_width / 2, y + cell_height / 2), f"{value:.0%}", ink, _font(13), anchor="mm")
            if layer == 0:
                draw.text((x + cell_width / 2, top - 10), f"head {head}", _FAINT, _font(13), anchor="mm")
        if head == 0:
            draw.text((GAP, y + cell_height / 2), f"layer {layer}", _FAINT, _font(13), anchor="lm")
    return block


def _row(row: AttentionRow) -> Image.Image:
    tiles = [(_outlined(row.image, row.truth, _TRUTH), _area(row))]
    for index in range(len(row.maps)):
        hit = row.truth is not None and bool(row.truth[row.peak(index)[1], row.peak(index)[0]])
        color = _FAINT if row.truth is None else _GOOD if hit else _BAD
        tiles.append((_heat(row, index, color), _percent(row.attention_share(index), "of its attention on the object")))
    for mask in (row.coarse, row.refined):
        tiles.append((_outlined(_tinted(row.image, mask), row.truth, _TRUTH), _percent(row.iou(mask), "IoU")))
    height = max(tile.shape[0] for tile, _ in tiles)
    block = Image.new("RGB", (GAP + len(tiles) * (CELL + GAP), _TITLE + height + _NOTE), _PAPER)
    draw = ImageDraw.Draw(block)
    source = f"   asked: {row.question}   answer: {row.answer}" if row.question else "   (a given name)"
    draw.text((GAP, 8), printable(f"“{row.phrase}”"), _INK, _font(18))
    draw.text((GAP + draw.textlength(printable(f"“{row.phrase}”"), _font(18)), 11), printable(source), _FAINT, _font(15))
    for index, (tile, note) in enumerate(tiles):
        x = GAP + index * (CELL + GAP)
        block.paste(Image.fromarray(tile), (x, _TITLE))
        draw.text((x, _TITLE + tile.shape[0] + 4), note, _FAINT, _font(13))
    return block


def _area(row: AttentionRow) -> str:
    return _percent(float("nan") if row.truth is None else float(row.truth.mean()), "of the image")


def _percent(value: float, what: str) -> str:
    return "" if math.isnan(value) else f"{value:.0%} {what}"


def _heat(row: AttentionRow, index: int, color: tuple[int, int, int]) -> np.ndarray:
    """The image in grey under a heat map, with a cross at the peak."""
    size = _size(row.image)
    heat = cv2.resize(row.maps[index], size, interpolation=cv2.INTER_LINEAR)
    heat = np.clip(heat / max(float(row.maps[index].max()), 1e-12), 0, 1)
    grey = cv2.cvtColor(cv2.resize(row.image, size, interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY).astype(np.float32)
    ramp = cv2.applyColorMap((heat * 255).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1].astype(np.float32)
    share = (0.25 + 0.65 * heat)[..., None]
    tile = np.ascontiguousarray((grey[..., None] * 0.8 * (1 - share) + ramp * share).clip(0, 255).astype(np.uint8))
    x, y = row.peak(index)
    scale = size[0] / row.image.shape[1]
    at = (round(x * scale), round(y * scale))
    cv2.drawMarker(tile, at, (255, 255, 255), cv2.MARKER_CROSS, 17, 4, cv2.LINE_AA)
    cv2.drawMarker(tile, at, color, cv2.MARKER_CROSS, 15, 2, cv2.LINE_AA)
    return tile


def _outlined(image: np.ndarray, mask: np.ndarray | None, color: tuple[int, int, int]) -> np.ndarray:
    size = _size(image)
    tile = np.ascontiguousarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))
    if mask is not None:
        small = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
        contours, _ = cv2.findContours(small, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(tile, contours, -1, color, 1, cv2.LINE_AA)
    return tile


def _tinted(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    tinted = image.copy()
    tinted[mask] = (0.45 * image[mask] + 0.55 * np.array(_FOUND)).astype(np.uint8)
    return tinted


def _size(image: np.ndarray) -> tuple[int, int]:
    return CELL, min(4 * CELL, max(1, round(image.shape[0] * CELL / image.shape[1])))


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
