"""Attention and hidden states of the frozen LMM while it reads the answers about an image.

The images are read by the same :class:`FrozenLmm` as at run time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from flmm_core.data.samples import DETAIL, MISTAKE, REASON, REFER_KINDS, Sample, Span, Turn, expressions_of, refer_turn
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.lmm.trace import LmmTrace
from flmm_core.types import ImageGeometry


@dataclass(frozen=True)
class AnswerTrace:
    """One answer that the LMM has read."""

    geometry: ImageGeometry
    objects: tuple[tuple[int, ...], ...]
    """Objects that each of the ``n`` phrases names; empty for the name of an absent object."""
    spans: tuple[tuple[int, int], ...]
    """Half-open token range of each phrase."""
    maps: torch.Tensor
    """``[n, c, h, w]`` float16 attention, merged over each phrase's tokens."""
    states: torch.Tensor
    """``[l, t, d]`` float16 hidden states of the answer's tokens."""
    named: torch.Tensor
    """``[t]`` bool: tokens of phrases that a keyword selector should choose."""

    def phrase_states(self, phrase: int) -> torch.Tensor:
        """``[l, t, d]`` hidden states of a phrase's tokens."""
        start, end = self.spans[phrase]
        return self.states[:, start:end]


def read_turns(lmm: FrozenLmm, sample: Sample, turns: Sequence[Turn]) -> tuple[AnswerTrace, ...]:
    """Let the LMM read some turns of a sample, each by itself, as at run time.

    Raises:
        BrokenSampleError: the image cannot be read.
        CommandError: a turn has more tokens than the LMM's context, or special ones.
    """
    image = lmm.encode_image(Image.fromarray(sample.image()))
    said = [turn for turn in turns if turn.kind not in REFER_KINDS]
    read = lmm.teacher_force_batch(image, [(turn.question, turn.answer) for turn in said])
    traces = [
        _answer_trace(trace, turn, [trace.span_of(span.start, span.end) for span in turn.spans])
        for turn, trace in zip(said, read, strict=True)
    ]
    for turn in turns:
        if turn.kind in REFER_KINDS:
            trace, spans = lmm.teacher_force_phrases(image, turn.phrases)
            traces.append(_answer_trace(trace, turn, [(span.token_start, span.token_end) for span in spans]))
    return tuple(traces)


def choose_turns(sample: Sample, most: int, rng: np.random.Generator) -> list[Turn]:
    """Choose turns to read, in random order, but with one of every kind before the second of any.

    Of the expressions of refer mode one for each object is taken, as they are read in one sequence (F-LMM, training).

    Args:
        sample: with its turns; those whose answers are unknown are left out.
        most: largest number of turns.
        rng: source of the choices.
    """
    turns = [turn for turn in sample.turns if turn.kind not in (REASON, DETAIL)]
    order = [turns[i] for i in rng.permutation(len(turns))]
    before: Counter[str] = Counter()
    rounds = []
    for turn in order:
        rounds.append(before[turn.kind])
        before[turn.kind] += 1
    chosen = [order[i] for i in np.argsort(rounds, kind="stable")[:most]]
    return [_one_each(turn, rng) if turn.kind in REFER_KINDS else turn for turn in chosen]


def _one_each(turn: Turn, rng: np.random.Generator) -> Turn:
    expressions = expressions_of(turn)
    seen: set[tuple[int, ...]] = set()
    kept = []
    for i in rng.permutation(len(expressions)).tolist():
        objects = expressions[i].objects
        if not objects or objects not in seen:
            kept.append(i)
            seen.add(objects)
    return refer_turn([expressions[i] for i in sorted(kept)])


def _answer_trace(trace: LmmTrace, turn: Turn, spans: Sequence[tuple[int, int]]) -> AnswerTrace:
    named = torch.zeros(len(trace.token_ids), dtype=torch.bool)
    for span, (start, end) in zip(turn.spans, spans, strict=True):
        named[start:end] = _asserts(turn, span)
    return AnswerTrace(
        geometry=trace.geometry,
        objects=tuple(span.objects for span in turn.spans),
        spans=tuple(spans),
        maps=trace.merged_attention(list(spans)).half().cpu(),
        states=trace.states.half().cpu(),
        named=named,
    )


def _asserts(turn: Turn, span: Span) -> bool:
    """Whether a selector should choose a name: also in wrong answers, as presence is judged afterwards."""
    return bool(span.objects) or turn.kind == MISTAKE
