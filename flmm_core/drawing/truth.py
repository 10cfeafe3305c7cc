"""Draws the ground truth of a data set's image in the style of an answer."""

from __future__ import annotations

import math

import numpy as np
import torch

from flmm_core.data.samples import Sample, Turn
from flmm_core.drawing.overlay import contact_sheet, draw_overlay
from flmm_core.images.geometry import mask_box
from flmm_core.types import GroundedAnswer, GroundedPhrase

MOST_PHRASES = 8
"""Phrases of a turn that are drawn, so that the drawing stays readable."""


def drawn_phrase(words: str, start: int, mask: torch.Tensor, *, absent: bool = False) -> GroundedPhrase:
    """A phrase to draw, with a mask without a score.

    Args:
        words: of the phrase.
        start: its first character in the text.
        mask: ``[H, W]`` bool.
        absent: whether it refers to no object in the image.
    """
    x0, y0, x1, y1 = mask_box(mask).tolist()
    return GroundedPhrase(words, start, start + len(words), mask, (x0, y0, x1, y1), math.nan, absent=absent)


def true_answer(sample: Sample, turn: Turn, most: int = MOST_PHRASES) -> GroundedAnswer:
    """A turn as an answer with its true masks.

    Args:
        sample: whose turn it is.
        turn: for one without an answer, the question is the only phrase.
        most: phrases that are kept, the first ones.
    """
    height, width = sample.rles[0]["size"] if sample.rles else sample.image().shape[:2]
    answer, phrases = turn.answer or turn.question, []
    for span in turn.spans[:most]:
        mask = torch.from_numpy(sample.mask(span.objects) if span.objects else np.zeros((height, width), bool))
        start, end = (span.start, span.end) if turn.answer else (0, len(answer))
        phrases.append(drawn_phrase(answer[start:end], start, mask, absent=not span.objects))
    text = answer[: phrases[-1].end] if phrases and len(turn.spans) > most else answer
    return GroundedAnswer(text, tuple(phrases), height, width)


def truth_sheet(samples: list[Sample]) -> np.ndarray:
    """A contact sheet ``[H, W, 3]`` uint8 RGB of each sample's first turn with phrases."""
    pictures = []
    for sample in samples:
        turn = next((turn for turn in sample.turns if turn.spans), sample.turns[0])
        pictures.append(draw_overlay(sample.image(), true_answer(sample, turn), command=turn.question))
    return contact_sheet(pictures, columns=4)
