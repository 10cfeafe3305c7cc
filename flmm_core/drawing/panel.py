"""The panel below a drawn image: the command, the answer with its phrases in their colours, and a legend."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from flmm_core.common.plain_text import printable
from flmm_core.drawing.style import ALERT, FAINT, PANEL, TEXT, Color, color_of, font_of, shade, shortened
from flmm_core.types import GroundedAnswer, GroundedPhrase

_IN_LEGEND = 64
"""Phrases in the legend at most."""


@dataclass(frozen=True)
class _Word:
    text: str
    phrase: int | None = None
    """Index of the phrase that the word belongs to."""
    color: Color = TEXT
    """Of that phrase."""


def answer_panel(
    width: int, scale: int, answer: GroundedAnswer, command: str, fault: str, details: Sequence[str]
) -> Image.Image:
    """Draw command, answer, error and legend, as high as they need.

    Args:
        width: of the panel, pixels.
        scale: of :func:`~flmm_core.drawing.style.text_scale`.
        answer: its phrases' words take their colours.
        command: the user's words; empty for none.
        fault: error or warning; empty for none.
        details: an additional remark for each phrase in the legend.
    """
    panel = Image.new("RGB", (width, 1), PANEL)
    height = _draw_all(ImageDraw.Draw(panel), width, max(scale, 480), answer, command, fault, details)
    panel = Image.new("RGB", (width, height), PANEL)
    _draw_all(ImageDraw.Draw(panel), width, max(scale, 480), answer, command, fault, details)
    return panel


def _draw_all(
    draw: ImageDraw.ImageDraw,
    width: int,
    scale: int,
    answer: GroundedAnswer,
    command: str,
    fault: str,
    details: Sequence[str],
) -> int:
    """Draw everything; returns the height that it takes."""
    margin = max(12, scale // 48)
    large, small = font_of(max(15, scale // 36)), font_of(max(13, scale // 52))
    y = float(margin * 0.8)
    if command:
        shown = shortened(printable(command), 300)
        y = _draw_words(draw, [_Word(word) for word in shown.split(" ")], large, y, margin, width, FAINT)
    if answer.text or not fault:
        y = _draw_words(draw, list(_words_of(answer)), large, y, margin, width, TEXT)
    if fault:
        shown = shortened(printable(fault), 1000)
        y = _draw_words(draw, [_Word(word) for word in shown.split()], large, y, margin, width, ALERT)
    if answer.phrases:
        y = _draw_legend(draw, answer.phrases[:_IN_LEGEND], details, small, y + margin * 0.35, margin, width)
    if len(answer.phrases) > _IN_LEGEND:
        rest = f"and {len(answer.phrases) - _IN_LEGEND} more"
        y = _draw_words(draw, [_Word(rest)], small, y, margin, width, FAINT)
    return round(y + margin * 0.8)


def _words_of(answer: GroundedAnswer) -> Iterator[_Word]:
    """The words of the answer; a word that overlaps a phrase takes the phrase's colour."""
    for match in re.finditer(r"\S+", shortened(answer.text, 1000)):
        touching = (i for i, p in enumerate(answer.phrases) if p.start < match.end() and match.start() < p.end)
        index = next(touching, None)
        word = printable(match.group())
        yield _Word(word) if index is None else _Word(word, index, shade(index, answer.phrases[index]))


def _draw_words(
    draw: ImageDraw.ImageDraw,
    words: Sequence[_Word],
    font: ImageFont.FreeTypeFont,
    y: float,
    margin: int,
    width: int,
    color: Color,
) -> float:
    """Write words in wrapped lines; returns the y of the next line."""
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
    """A word cut into pieces that fit into a line; usually the word itself."""
    length = draw.textlength(word, font=font)
    if length <= width or len(word) < 2:
        return [word]
    count = max(1, int(len(word) * width / length * 0.95))  # letters differ in width: leave a margin
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
    """Draw swatch, words, score or state, and remark of each phrase; returns the y of the next line."""
    x, line, swatch = float(margin), font.size * 1.6, font.size
    for index, phrase in enumerate(phrases):
        remark = shortened(printable(details[index]), 80) if index < len(details) else ""
        name = shortened(printable(phrase.text), 40)
        score = "" if math.isnan(phrase.score) else f"{phrase.score:.2f}"
        state = "absent" if phrase.absent else score if phrase.mask.any() else "no mask"
        facts = "  ".join(part for part in (state, remark) if part)
        name_width, facts_width = draw.textlength(name, font=font), draw.textlength(facts, font=font)
        needed = swatch * 1.5 + name_width + swatch * 0.6 + facts_width
        if x > margin and x + needed > width - margin:
            x, y = float(margin), y + line
        fill = None if phrase.absent else color_of(index)
        place = (x, y + 1, x + swatch, y + 1 + swatch)
        draw.rounded_rectangle(place, radius=swatch / 4, fill=fill, outline=shade(index, phrase), width=2)
        draw.text((x + swatch * 1.5, y), name, font=font, fill=TEXT)
        draw.text((x + swatch * 2.1 + name_width, y), facts, font=font, fill=FAINT)
        x += needed + swatch * 1.6
    return y + line
