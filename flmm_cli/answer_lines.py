"""An answer's phrases as lines for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flmm_core.plain_text import printable

if TYPE_CHECKING:
    from flmm_core.types import GroundedAnswer


def phrase_lines(answer: GroundedAnswer) -> list[str]:
    """One line for each phrase: where it is, or that it is not there; then how long all took."""
    lines = []
    for phrase in answer.phrases:
        x1, y1, x2, y2 = phrase.box
        if phrase.absent:
            lines.append(f"  {printable(phrase.text)}: not there (presence {phrase.presence:.2f})")
            continue
        place = f"x {x1}-{x2}, y {y1}-{y2}, {int(phrase.mask.sum())} pixels" if x2 > x1 else "no mask"
        lines.append(f"  {printable(phrase.text)}: {place}, score {phrase.score:.2f}, presence {phrase.presence:.2f}")
    return [*lines, f"  ({answer.seconds.total:.2f} s)"]
