"""How LMMs are prompted for boxes and how they write them, each as it was trained.

Sources: the model cards of Qwen2.5-VL and Qwen3-VL (JSON with ``bbox_2d``), InternVL's documentation, PaliGemma's paper
(``<loc0000>`` tokens), LLaVA-1.5's training questions, and the documentation of Gemini, whose convention Gemma 3 follows.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal

from flmm_core.types import ImageGeometry

Box = tuple[float, float, float, float]
"""XYXY pixels of the image, ends exclusive."""

Frame = Literal["image", "square", "resized"]
"""Frame of the numbers: the image; the image padded to a centred square; the input of the vision tower."""

_NUMBER = r"\s*(-?\d+(?:\.\d+)?)\s*"
_BOX = re.compile(rf"[\[(]{','.join([_NUMBER] * 4)}[\])]|{'<loc([0-9]{4})>' * 4}")
_LABEL = re.compile(r'"(?:label|ref)"\s*:\s*"([^"]*)"')


@dataclass(frozen=True)
class BoxFormat:
    """The prompt for the box of a phrase, and the meaning of the numbers in the answer."""

    question: str
    """The prompt, with ``{phrase}``."""
    unit: float | None
    """Value at the frame's far edge; None for pixels."""
    frame: Frame = "image"
    rows_first: bool = False
    """Whether boxes are YXYX instead of XYXY."""

    def ask(self, phrase: str) -> str:
        """The prompt for a phrase."""
        return self.question.format(phrase=phrase)

    def parse(self, answer: str, geometry: ImageGeometry) -> list[tuple[str, Box]]:
        """Boxes in an answer, cut to the image, each with its words; boxes that are empty or outside are left out.

        Args:
            answer: the LMM's words.
            geometry: of the image in the frame that the vision tower saw.

        Returns:
            Words and box: the nearest ``label`` of JSON, or the text between this box and the one before.
        """
        found, end = [], 0
        matches = list(_BOX.finditer(answer))
        for match, following in zip_longest(matches, matches[1:]):
            numbers = [float(number) for number in match.groups() if number is not None]
            box = self._box(numbers, geometry)
            # A label stands before its box or behind it, and belongs to one box alone.
            until = following.start() if following else len(answer)
            label = _LABEL.search(answer, end, match.start()) or _LABEL.search(answer, match.end(), until)
            words = label[1] if label else answer[end : match.start()]
            if box[2] > box[0] and box[3] > box[1]:
                found.append((words.strip(" \n:,.[]{}()" if label is None else " "), box))
            end = max(match.end(), label.end() if label else 0)
        return found

    def _box(self, numbers: list[float], g: ImageGeometry) -> Box:
        if self.rows_first:
            numbers = [numbers[1], numbers[0], numbers[3], numbers[2]]
        width, height, left, top, scale_x, scale_y = self._layout(g)

        def place(value: float, size: float, offset: float, scale: float, most: int) -> float:
            pixel = value if self.unit is None else value / self.unit * size
            return min(max((pixel - offset) * scale, 0.0), float(most))

        x0, x1 = (place(numbers[i], width, left, scale_x, g.image_width) for i in (0, 2))
        y0, y1 = (place(numbers[i], height, top, scale_y, g.image_height) for i in (1, 3))
        return x0, y0, x1, y1

    def _layout(self, g: ImageGeometry) -> tuple[float, float, float, float, float, float]:
        """Width and height of the frame, where the image begins in it, and image pixels for each of its pixels."""
        if self.frame == "image":
            return g.image_width, g.image_height, 0.0, 0.0, 1.0, 1.0
        if self.frame == "square":
            side = max(g.image_width, g.image_height)
            return side, side, (side - g.image_width) / 2, (side - g.image_height) / 2, 1.0, 1.0
        scale_x, scale_y = g.image_width / g.inner_width, g.image_height / g.inner_height
        return g.padded_width, g.padded_height, g.offset_x, g.offset_y, scale_x, scale_y


_LOCATE = "Locate {phrase} in this image and output the bbox coordinates in JSON format."
_PROVIDE = "Please provide the bounding box coordinate of the region this sentence describes: {phrase}"

SHARES = BoxFormat(_PROVIDE + ".", unit=1.0, frame="square")
"""LLaVA-1.5 and those that learnt from its data: ``[0.10, 0.20, 0.30, 0.40]``."""
JSON_PIXELS = BoxFormat(_LOCATE, unit=None, frame="resized")
"""Qwen2.5-VL."""
JSON_THOUSANDTHS = BoxFormat(_LOCATE, unit=1000.0)
"""Qwen3-VL."""
THOUSANDTHS = BoxFormat(_PROVIDE, unit=1000.0)
"""InternVL: ``[[100, 200, 300, 400]]``. Its special tokens around the phrase are left out: a user's words cannot hold them."""
LOCATION_TOKENS = BoxFormat("detect {phrase}", unit=1024.0, rows_first=True)
"""PaliGemma: ``<loc0100><loc0200><loc0300><loc0400>``."""
JSON_ROWS_FIRST = BoxFormat(
    "Detect {phrase}. Answer with JSON: a list of objects with box_2d, as [ymin, xmin, ymax, xmax] normalised to 0 to 1000.",
    unit=1000.0,
    rows_first=True,
)
"""Gemma 3."""
