"""The node's answers compared with the truth of the simulation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flmm_core.evaluation.matching import is_right, match_phrases, true_masks
from flmm_core.images.masks import Overlap
from flmm_core.types import GroundedAnswer, GroundedPhrase
from flmm_demo.commands import DemoCommand
from flmm_ros.msg import GroundedAnswer as Reply

MIN_IOU = 0.5
"""Below this IoU with the true mask, a mask is wrong."""


@dataclass(frozen=True)
class CheckedPhrase:
    """A phrase of an answer, compared with the truth."""

    phrase: GroundedPhrase
    iou: float | None
    """With the true mask; None if the phrase names nothing in the scene."""

    @property
    def fault(self) -> str:
        """What is wrong; empty if the mask is right, or rightly empty."""
        if self.iou is None:
            return "expected no mask" if self.phrase.mask.any() else ""
        if self.phrase.absent:
            return "marked as absent"
        return "" if self.iou >= MIN_IOU else f"IoU {self.iou:.2f}"


@dataclass(frozen=True)
class Outcome:
    """The result of one command."""

    command: DemoCommand
    reply: Reply
    image: np.ndarray
    """``[H, W, 3]`` uint8 RGB: the camera image with the stamp of the reply."""
    answer: GroundedAnswer
    phrases: tuple[CheckedPhrase, ...]
    """Those of the answer."""
    grasp: str = ""
    """Result of the simulated grasp, in words; empty unless the command was to fetch an object."""

    @property
    def answered(self) -> bool:
        """Whether the command was answered, not refused."""
        return bool(self.reply.status == Reply.STATUS_ANSWERED)

    @property
    def fault(self) -> str:
        """What is wrong, in words; empty if text and masks are right."""
        if not self.answered:
            return f"refused: {self.reply.reason}"
        turn = self.command.turn
        if not is_right(self.answer.text, turn.answer):
            return f"expected: {turn.answer}"
        spans = [turn.spans[s] for p, s in match_phrases(self.answer.phrases, turn, right=True) if p is None and s is not None]
        missed = [(turn.answer[span.start : span.end], "no mask") for span in spans if span.objects]
        faulty = [(checked.phrase.text, checked.fault) for checked in self.phrases if checked.fault]
        return "; ".join(f"“{words}”: {fault}" for words, fault in faulty + missed)


def compare(answer: GroundedAnswer, command: DemoCommand) -> tuple[CheckedPhrase, ...]:
    """Compare each phrase of an answer with the truth about it."""
    truths = true_masks(answer, command.turn, command.true_mask)
    return tuple(
        CheckedPhrase(phrase, None if truth is None else Overlap.of(phrase.mask, truth).iou)
        for phrase, truth in zip(answer.phrases, truths, strict=True)
    )
