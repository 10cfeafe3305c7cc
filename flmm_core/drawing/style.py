"""Colours and fonts of the drawings, and text cut to a length."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import ImageFont

from flmm_core.types import GroundedPhrase

Color = tuple[int, int, int]
"""RGB, 0..255."""

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

PANEL: Color = (20, 22, 28)
TEXT: Color = (236, 238, 242)
FAINT: Color = (148, 154, 166)
ALERT: Color = (255, 120, 100)
"""Background of the panel, its text, secondary text, and text of errors."""


def color_of(index: int) -> Color:
    """RGB of the phrase with this index."""
    return PALETTE[index % len(PALETTE)]


def shade(index: int, phrase: GroundedPhrase) -> Color:
    """Colour of a phrase's words: its own, or grey for an absent object."""
    return FAINT if phrase.absent else color_of(index)


def shortened(text: str, length: int) -> str:
    """The text, or its beginning and three dots if it has more than ``length`` characters."""
    return text if len(text) <= length else text[: length - 3] + "..."


def text_scale(width: int, height: int) -> int:
    """Length in pixels that text is sized by: the width of an image of usual shape, less for wide and for large ones."""
    return min(width, max(2 * height, 960), 2560)


def ink_on(color: Color) -> Color:
    """Near-black or white, whichever has more contrast on ``color``."""
    return (16, 18, 22) if np.dot(color, (0.299, 0.587, 0.114)) > 120 else (255, 255, 255)


@lru_cache(maxsize=16)
def font_of(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font in a size in pixels, cached."""
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont), "Pillow was built without FreeType"
    return font
