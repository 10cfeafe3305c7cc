"""The phrases of an answer as lines of text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from flmm_core.common.plain_text import printable

if TYPE_CHECKING:
    from flmm_core.types import GroundedAnswer


def label_marks(labels: Sequence[int]) -> list[str]:
    """``[2]`` for label 2, an empty string for 0, which means no label."""
    return [f"[{label}]" if label else "" for label in labels]


def phrase_lines(answer: GroundedAnswer, labels: Sequence[int] = ()) -> list[str]:
    """One line for each phrase, with its box, size and scores or its absence, or why there is none; last the total time.

    Args:
        answer: from a pipeline.
        labels: in a conversation the label of each phrase's object, 0 for none.
    """
    lines = []
    marks = label_marks(labels) or [""] * len(answer.phrases)
    for phrase, mark in zip(answer.phrases, marks, strict=True):
        x1, y1, x2, y2 = phrase.box
        name = f"{mark} {printable(phrase.text)}".lstrip()
        if phrase.absent:
            lines.append(f"  {name}: not there (presence {phrase.presence:.2f})")
            continue
        place = f"x {x1}-{x2}, y {y1}-{y2}, {int(phrase.mask.sum())} pixels" if x2 > x1 else "no mask"
        lines.append(f"  {name}: {place}, score {phrase.score:.2f}, presence {phrase.presence:.2f}")
    lines += [f"  ({answer.reason})"] if answer.reason else []
    return [*lines, f"  ({answer.seconds.total:.2f} s)"]
