"""A conversation about one image: the LMM reads the earlier turns, and objects keep their labels."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from flmm_core.errors import CommandError
from flmm_core.images.masks import Overlap
from flmm_core.keywords.repetition import NO_ANSWER
from flmm_core.lmm.tokens import LABEL, Exchange
from flmm_core.pipeline import GroundingPipeline
from flmm_core.requests.callbacks import Callbacks
from flmm_core.requests.image_handle import ImageHandle
from flmm_core.types import GroundedAnswer, GroundedPhrase

SAME_OBJECT = 0.5
"""Least IoU of two masks that are taken for one object."""


@dataclass(frozen=True)
class LabelledAnswer:
    """An answer with the labels of its objects."""

    answer: GroundedAnswer
    labels: tuple[int, ...]
    """One for each phrase, from 1; 0 for a phrase without a mask."""


class Conversation:
    """A conversation about one image.

    Objects that answers name are kept by label: one that was named before keeps its label, whatever it is called now.
    ``[2]`` in a question stands for the words of object 2.

    Args:
        pipeline: answers.
        image: from its ``encode``.
        remember: earlier turns that the LMM reads again; fewer if its context is too short, none for a model of single
            questions.
    """

    def __init__(self, pipeline: GroundingPipeline, image: ImageHandle, *, remember: int) -> None:
        if remember < 0:
            raise ValueError(f"remember: expected 0 or more, got {remember}")
        self._pipeline = pipeline
        self._image = image
        self._remember = remember if pipeline.lmm.family.turn_end is not None else 0
        self._said: list[Exchange] = []
        self.objects: dict[int, GroundedPhrase] = {}
        """Objects by label, each with its latest phrase."""

    def ask(self, text: str, *, callbacks: Callbacks | None = None) -> LabelledAnswer:
        """Answer a question and ground the answer.

        Args:
            text: the user's words.
            callbacks: follow the command.

        Raises:
            CommandError: as for :meth:`GroundingPipeline.chat`; or an unknown label.
            MemoryFullError: the device has too little memory left.
        """
        words = self.named(text)
        answer = self._pipeline.chat(self._image, words, history=self._history(words), callbacks=callbacks)
        if answer.text and not answer.text.startswith(NO_ANSWER):
            self._said.append((words, answer.text))
        return self.labelled(answer)

    def refer(self, phrases: Sequence[str]) -> LabelledAnswer:
        """Ground given phrases; the LMM does not read the earlier turns.

        Raises:
            CommandError: as for :meth:`GroundingPipeline.refer`; or an unknown label.
            MemoryFullError: the device has too little memory left.
        """
        return self.labelled(self._pipeline.refer(self._image, [self.named(phrase) for phrase in phrases]))

    def _history(self, words: str) -> list[Exchange]:
        """The last turns that fit into the context before a question."""
        history = self._said[-self._remember :] if self._remember else []
        longest = self._pipeline.config.max_new_tokens
        while history and not self._pipeline.lmm.fits(self._image.lmm(), words, max_new_tokens=longest, history=history):
            del history[0]
        return history

    def named(self, text: str) -> str:
        """A text with labels replaced by the words of their objects.

        Raises:
            CommandError: an unknown label.
        """

        def words(match: re.Match[str]) -> str:
            label = int(match[1]) if len(match[1]) < 10 else 0  # Python refuses numbers of thousands of digits
            if (found := self.objects.get(label)) is None:
                known = ", ".join(map(str, self.objects)) or "none yet"
                raise CommandError(f"label: expected one of those given ({known}), got {match[1]:.20}")
            return found.text

        return LABEL.sub(words, text)

    def labelled(self, answer: GroundedAnswer) -> LabelledAnswer:
        """Keep the objects of an answer about this image, and label them."""
        labels: list[int] = []
        for phrase in answer.phrases:
            if not phrase.mask.any():
                labels.append(0)
                continue
            alike = {label: Overlap.of(phrase.mask, thing.mask).iou for label, thing in self.objects.items()}
            best = max(alike, key=lambda label: alike[label], default=0)
            label = best if alike.get(best, 0.0) >= SAME_OBJECT else len(self.objects) + 1
            self.objects[label] = phrase
            labels.append(label)
        return LabelledAnswer(answer, tuple(labels))
