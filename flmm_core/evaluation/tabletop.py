"""Evaluates a whole grounding model on a data set with known answers and masks.

It measures answers, their masks before and after refinement, the keyword selector, and refer mode.
:mod:`flmm_core.evaluation.workers` runs it over images; :mod:`flmm_core.evaluation.report` computes figures from the records of
this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from flmm_core.data.samples import NO_ANSWERS, REFER, REFER_ABSENT, Sample, Turn
from flmm_core.evaluation.matching import Pair, is_right, match_phrases, overlaps
from flmm_core.evaluation.metrics import Range, Retrieval, phrase_retrieval, word_retrieval
from flmm_core.images.masks import Overlap
from flmm_core.keywords.noun_chunks import noun_chunks
from flmm_core.pipeline import GroundingPipeline
from flmm_core.requests.callbacks import CoarseMaskCallbacks
from flmm_core.requests.image_handle import ImageHandle
from flmm_core.types import CoarseMasks, GroundedAnswer, StageSeconds

_REFER = (REFER, REFER_ABSENT)


@dataclass(frozen=True)
class MaskPair:
    """Overlaps of the same masks before and after refinement; see :func:`~flmm_core.evaluation.matching.overlaps`."""

    coarse: tuple[Overlap, ...]
    refined: tuple[Overlap, ...]


@dataclass(frozen=True)
class PhraseRecord:
    """Ground truth of a phrase of an answer, and the model's result."""

    there: bool
    """Whether it names a present object, according to the matching span of the true answer."""
    called_absent: bool
    masked: bool
    """Whether its mask has any pixel."""


@dataclass(frozen=True)
class SpanCounts:
    """Retrieval of phrases and words from a true answer."""

    phrases: Retrieval
    words: Retrieval


@dataclass(frozen=True)
class ChatRecord:
    """A question, its answer, and the comparison with ground truth."""

    kind: str
    question: str
    truth: str
    answer: str
    right: bool
    names_things: bool
    """Whether the true answer names a present object."""
    phrases: tuple[PhraseRecord, ...]
    masks: MaskPair
    selector: SpanCounts | None
    """Counts of the trained selector on the true answer; None if the heads have none."""
    chunks: SpanCounts
    """Counts of the noun-chunk rule on the true answer."""
    seconds: StageSeconds


@dataclass(frozen=True)
class ReferRecord:
    """A phrase that was grounded in refer mode."""

    words: str
    relational: bool
    """Whether it refers to the object by its relation to another one: "mug left of the lemon"."""
    phrase: PhraseRecord
    masks: MaskPair


@dataclass(frozen=True)
class ImageRecord:
    """All questions and phrases about one image."""

    chat: tuple[ChatRecord, ...]
    refer: tuple[ReferRecord, ...]


class ImageEvaluation:
    """Asks a pipeline all questions of a data set about an image.

    Args:
        pipeline: what is evaluated.
        per_kind: most questions of each kind; None for all.
    """

    def __init__(self, pipeline: GroundingPipeline, *, per_kind: int | None = None) -> None:
        self.pipeline = pipeline
        self.per_kind = per_kind

    def run(self, sample: Sample) -> ImageRecord:
        """Evaluate one image."""
        image = self.pipeline.encode(sample.image())
        turns = self._chosen(sample.turns)
        chat = tuple(self._chat(image, sample, turn) for turn in turns if turn.kind not in NO_ANSWERS)
        refer = tuple(record for turn in turns if turn.kind in _REFER for record in self._refer(image, sample, turn))
        return ImageRecord(chat, refer)

    def _chosen(self, turns: Sequence[Turn]) -> list[Turn]:
        seen: dict[str, int] = {}
        chosen = []
        for turn in turns:
            seen[turn.kind] = seen.get(turn.kind, 0) + 1
            if self.per_kind is None or seen[turn.kind] <= self.per_kind:
                chosen.append(turn)
        return chosen

    def _chat(self, image: ImageHandle, sample: Sample, turn: Turn) -> ChatRecord:
        seen = CoarseMaskCallbacks()
        answer = self.pipeline.chat(image, turn.question, callbacks=seen)
        right = is_right(answer.text, turn.answer)
        pairs = match_phrases(answer.phrases, turn, right=right)
        selector, chunks = self._keywords(image, turn)
        return ChatRecord(
            kind=turn.kind,
            question=turn.question,
            truth=turn.answer,
            answer=answer.text,
            right=right,
            names_things=bool(turn.present),
            phrases=_phrase_records(answer, pairs, turn),
            masks=self._compare(answer, seen.coarse, pairs, sample, turn),
            selector=selector,
            chunks=chunks,
            seconds=answer.seconds,
        )

    def _refer(self, image: ImageHandle, sample: Sample, turn: Turn) -> list[ReferRecord]:
        phrases = [turn.answer[span.start : span.end] for span in turn.spans]
        seen = CoarseMaskCallbacks()
        answer = self.pipeline.refer(image, phrases, callbacks=seen)
        records = []
        for index, words in enumerate(phrases):
            pairs: list[Pair] = [(index, index)]
            masks = self._compare(answer, seen.coarse, pairs, sample, turn)
            records.append(ReferRecord(words, is_relational(words), _phrase_records(answer, pairs, turn)[0], masks))
        return records

    def _keywords(self, image: ImageHandle, turn: Turn) -> tuple[SpanCounts | None, SpanCounts]:
        """Phrases of the true answer that selector and noun-chunk rule select; names of absent objects must not be selected."""
        true = [(span.start, span.end) for span in turn.present]
        chunks = _span_counts(turn.answer, noun_chunks(turn.answer), true)
        if not self.pipeline.heads.selects_keywords:
            return None, chunks
        trace = self.pipeline.teacher_force(image, turn.question, turn.answer)
        picked = [(span.start, span.end) for span in self.pipeline.keywords(trace)]
        return _span_counts(turn.answer, picked, true), chunks

    def _compare(
        self, answer: GroundedAnswer, coarse: CoarseMasks | None, pairs: Sequence[Pair], sample: Sample, turn: Turn
    ) -> MaskPair:
        size, threshold = (answer.image_height, answer.image_width), self.pipeline.config.mask_threshold

        def before(index: int) -> np.ndarray:
            if answer.phrases[index].absent or coarse is None:
                return np.zeros(size, bool)
            return coarse_mask(coarse.logits[index], size, threshold)

        return MaskPair(
            coarse=overlaps(pairs, before, turn, sample.mask),
            refined=overlaps(pairs, lambda index: answer.phrases[index].mask, turn, sample.mask),
        )


def _phrase_records(answer: GroundedAnswer, pairs: Sequence[Pair], turn: Turn) -> tuple[PhraseRecord, ...]:
    return tuple(
        PhraseRecord(
            there=s is not None and bool(turn.spans[s].objects),
            called_absent=answer.phrases[p].absent,
            masked=bool(answer.phrases[p].mask.any()),
        )
        for p, s in pairs
        if p is not None
    )


def coarse_mask(logits: torch.Tensor, size: tuple[int, int], threshold: float) -> np.ndarray:
    """Enlarge a coarse mask's logits ``[h, w]`` to a mask ``[H, W]`` bool of the image."""
    probability = F.interpolate(logits.sigmoid()[None, None], size, mode="bilinear")[0, 0]
    return (probability > threshold).cpu().numpy()


def is_relational(phrase: str) -> bool:
    """Whether a phrase refers to an object by its relation to another one, such as "mug left of the lemon"."""
    return " the " in phrase.lower().removeprefix("the ")


def _span_counts(text: str, found: Sequence[Range], true: Sequence[Range]) -> SpanCounts:
    return SpanCounts(phrase_retrieval(found, true), word_retrieval(text, found, true))
