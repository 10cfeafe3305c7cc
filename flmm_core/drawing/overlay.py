"""Draws a grounded answer on its image: mask tints, contours, labels, a legend, and what was asked and answered.

Everything is drawn with NumPy, OpenCV and Pillow's own font, so it looks the same on every machine.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from flmm_core.common.plain_text import printable
from flmm_core.images.geometry import mask_box
from flmm_core.types import GroundedAnswer, GroundedPhrase

Color = tuple[int, int, int]
Box = tuple[float, float, float, float]
"""XYXY in the coordinates of the drawing, which is larger than the image."""

PALETTE: tuple[Color, ...] = (
    (38, 160, 255),
    (255, 92, 70),
    (60, 205, 110),
    (255, 196, 20),
    (190, 100, 255),
    (0, 208, 212),
    (255, 110, 190),
    (160, 210, 40),
    (255, 146, 40),
    (130, 140, 255),
)
"""RGB colours of the phrases, in the order of the answer; they repeat after the last."""

_PANEL: Color = (20, 22, 28)
_TEXT: Color = (236, 238, 242)
_FAINT: Color = (148, 154, 166)
_ALERT: Color = (255, 120, 100)
_TINT = 0.32
_MOST_SCALE = 8
_LEAST_WIDTH = 960
"""Small images are enlarged to about this size, so that labels stay small beside the things they name."""


def draw_overlay(
    image: np.ndarray, answer: GroundedAnswer, *, command: str = "", fault: str = "", details: Sequence[str] = ()
) -> np.ndarray:
    """Draw ``answer`` on ``image``.

    Args:
        image: ``[H, W, 3]`` uint8 RGB.
        answer: its masks are ``[H, W]``.
        command: what was asked; shown below the image.
        fault: why there is no answer, or what is wrong with it; shown below it.
        details: one more remark for each phrase in the legend, for instance its IoU.

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
    _draw_labels(drawn, answer.phrases, masks)
    panel = _panel(max(drawn.width, _LEAST_WIDTH // 2), answer, command, fault, details)
    sheet = Image.new("RGB", (panel.width, drawn.height + panel.height), _PANEL)
    sheet.paste(drawn, ((panel.width - drawn.width) // 2, 0))
    sheet.paste(panel, (0, drawn.height))
    return np.asarray(sheet)


def contact_sheet(images: Sequence[np.ndarray], *, columns: int = 3, tile_width: int = 640) -> np.ndarray:
    """Lay images out in rows.

    Args:
        images: ``[H, W, 3]`` uint8 RGB each, of any size.
        columns: images in a row.
        tile_width: width of each, in pixels.
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
            sheet[top : top + height, left : left + tile_width] = _PANEL
            sheet[top : top + tile.shape[0], left : left + tile_width] = tile
        top += height + gap
    return sheet


def color_of(index: int) -> Color:
    """RGB of the phrase with this index."""
    return PALETTE[index % len(PALETTE)]


def _shade(index: int, phrase: GroundedPhrase) -> Color:
    """The colour of a phrase's words; grey for what is not there."""
    return _FAINT if phrase.absent else color_of(index)


def _resized(image: np.ndarray, width: int) -> np.ndarray:
    height = max(1, round(image.shape[0] * width / image.shape[1]))
    shrinks = width < image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)


def _enlarged(image: np.ndarray, scale: int) -> np.ndarray:
    if scale == 1:
        return image.copy()
    return cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)


def _enlarged_mask(mask: np.ndarray, scale: int) -> np.ndarray:
    """Bool mask with smooth edges instead of steps."""
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


# --- labels beside the masks ----------------------------------------------------------------------------------------------


def _draw_labels(image: Image.Image, phrases: Sequence[GroundedPhrase], masks: Sequence[np.ndarray]) -> None:
    draw = ImageDraw.Draw(image)
    font = _font(max(14, image.width // 48))
    boxes: list[Box | None] = [tuple(mask_box(torch.from_numpy(mask)).tolist()) if mask.any() else None for mask in masks]
    taken: list[Box] = []
    for index, phrase in enumerate(phrases):
        box = boxes[index]
        if box is None:
            continue
        text = _shortened(printable(phrase.text), 32)
        length, pad = draw.textlength(text, font=font), font.size * 0.4
        size = (length + 2 * pad, font.size * 1.5)
        others = [other for other in boxes if other is not None and other is not box]
        place = _free_place(box, size, (image.width, image.height), taken, others)
        taken.append(place)
        color = color_of(index)
        draw.rounded_rectangle(place, radius=pad, fill=color, outline=(255, 255, 255), width=1)
        draw.text((place[0] + pad, (place[1] + place[3]) / 2), text, font=font, fill=_ink_on(color), anchor="lm")


def _free_place(
    box: Box, size: tuple[float, float], bounds: tuple[int, int], taken: Sequence[Box], others: Sequence[Box]
) -> Box:
    """The place around ``box`` that covers least of other labels and things."""
    width, height = size
    x0, y0, x1, y1 = box
    middle_x, middle_y, gap = (x0 + x1) / 2, (y0 + y1) / 2, 6
    corners = (
        (middle_x - width / 2, y0 - height - gap),
        (middle_x - width / 2, y1 + gap),
        (x1 + gap, middle_y - height / 2),
        (x0 - width - gap, middle_y - height / 2),
        (x0, y0 - height - gap),
        (x1 - width, y0 - height - gap),
        (x0, y1 + gap),
        (x1 - width, y1 + gap),
        (middle_x - width / 2, middle_y - height / 2),
        (middle_x - width / 2, y0 - 2 * height - 2 * gap),
        (middle_x - width / 2, y1 + height + 2 * gap),
    )

    def placed(corner: tuple[float, float]) -> Box:
        left = min(max(corner[0], 2), max(bounds[0] - width - 2, 2))
        top = min(max(corner[1], 2), max(bounds[1] - height - 2, 2))
        return left, top, left + width, top + height

    def cost(entry: tuple[int, tuple[float, float]]) -> float:
        order, corner = entry
        place = placed(corner)
        area = width * height
        on_labels = sum(_overlap(place, other) for other in taken) / area
        on_things = sum(_overlap(place, other) for other in others) / area
        return 20 * on_labels + 2 * on_things + _overlap(place, box) / area + 0.05 * order

    return placed(min(enumerate(corners), key=cost)[1])


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


# --- the panel below the image ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Word:
    text: str
    phrase: int | None = None
    """Index of the phrase that the word belongs to."""
    color: Color = _TEXT
    """Of that phrase."""


def _panel(width: int, answer: GroundedAnswer, command: str, fault: str, details: Sequence[str]) -> Image.Image:
    """Command, answer with its phrases in their colours, and the legend."""
    margin = max(12, width // 48)
    panel = Image.new("RGB", (width, 10 * width + 1000), _PANEL)
    draw = ImageDraw.Draw(panel)
    large, small = _font(max(15, width // 36)), _font(max(13, width // 52))
    y = float(margin * 0.8)
    if command:
        shown = _shortened(printable(command), 300)
        y = _draw_words(draw, [_Word(word) for word in shown.split(" ")], large, y, margin, width, _FAINT)
    if answer.text or not fault:
        y = _draw_words(draw, list(_words_of(answer)), large, y, margin, width, _TEXT)
    if fault:
        y = _draw_words(draw, [_Word(word) for word in printable(fault).split()], large, y, margin, width, _ALERT)
    if answer.phrases:
        y = _draw_legend(draw, answer.phrases, details, small, y + margin * 0.35, margin, width)
    return panel.crop((0, 0, width, round(y + margin * 0.8)))


def _words_of(answer: GroundedAnswer) -> Iterator[_Word]:
    """The words of the answer; a word that any phrase touches takes the phrase's colour."""
    for match in re.finditer(r"\S+", _shortened(answer.text, 1000)):
        touching = (i for i, p in enumerate(answer.phrases) if p.start < match.end() and match.start() < p.end)
        index = next(touching, None)
        word = printable(match.group())
        yield _Word(word) if index is None else _Word(word, index, _shade(index, answer.phrases[index]))


def _draw_words(
    draw: ImageDraw.ImageDraw,
    words: Sequence[_Word],
    font: ImageFont.FreeTypeFont,
    y: float,
    margin: int,
    width: int,
    color: Color,
) -> float:
    """Write words in wrapped lines; returns where the next line begins."""
    line, space = font.size * 1.42, draw.textlength(" ", font=font)
    x, previous = float(margin), None
    for word in words:
        pieces = _fitting_pieces(draw, word.text, font, width - 2 * margin)
        for piece in pieces:
            length = draw.textlength(piece, font=font)
            if x > margin and x + length > width - margin:
                x, y, previous = float(margin), y + line, None
            draw.text((x, y), piece, font=font, fill=color)
            if word.phrase is not None:
                name = piece.rstrip(".,;:!?")
                begin = x - space if previous == word.phrase else x
                under = y + font.size * 1.24
                draw.text((x, y), name, font=font, fill=word.color)
                end = x + draw.textlength(name, font=font)
                draw.line((begin, under, end, under), fill=word.color, width=max(2, round(font.size / 10)))
            x, previous = x + length + space, word.phrase
    return y + line


def _fitting_pieces(draw: ImageDraw.ImageDraw, word: str, font: ImageFont.FreeTypeFont, width: float) -> list[str]:
    """A word cut into pieces that fit a line; nearly always the word itself."""
    length = draw.textlength(word, font=font)
    if length <= width or len(word) < 2:
        return [word]
    count = max(1, int(len(word) * width / length * 0.95))  # letters differ in width: leave some room
    return [word[start : start + count] for start in range(0, len(word), count)]


def _draw_legend(
    draw: ImageDraw.ImageDraw,
    phrases: Sequence[GroundedPhrase],
    details: Sequence[str],
    font: ImageFont.FreeTypeFont,
    y: float,
    margin: int,
    width: int,
) -> float:
    """A swatch, the phrase, its score if it has one and its remark for each phrase; returns where the next line begins."""
    x, line, swatch = float(margin), font.size * 1.6, font.size
    for index, phrase in enumerate(phrases):
        remark = printable(details[index]) if index < len(details) else ""
        name = _shortened(printable(phrase.text), 40)
        score = "" if math.isnan(phrase.score) else f"{phrase.score:.2f}"
        state = "not there" if phrase.absent else score if phrase.mask.any() else "no mask"
        facts = "  ".join(part for part in (state, remark) if part)
        name_width, facts_width = draw.textlength(name, font=font), draw.textlength(facts, font=font)
        needed = swatch * 1.5 + name_width + swatch * 0.6 + facts_width
        if x > margin and x + needed > width - margin:
            x, y = float(margin), y + line
        fill = None if phrase.absent else color_of(index)
        place = (x, y + 1, x + swatch, y + 1 + swatch)
        draw.rounded_rectangle(place, radius=swatch / 4, fill=fill, outline=_shade(index, phrase), width=2)
        draw.text((x + swatch * 1.5, y), name, font=font, fill=_TEXT)
        draw.text((x + swatch * 2.1 + name_width, y), facts, font=font, fill=_FAINT)
        x += needed + swatch * 1.6
    return y + line


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."


def _ink_on(color: Color) -> Color:
    """Black or white, whichever reads better on ``color``."""
    return (16, 18, 22) if np.dot(color, (0.299, 0.587, 0.114)) > 120 else (255, 255, 255)


@lru_cache(maxsize=16)
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font
