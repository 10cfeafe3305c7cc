"""Greedy generation of one answer, recorded: ``model.generate`` itself, so the token ids are the plain model's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, StoppingCriteria, StoppingCriteriaList

from flmm_core.lmm.decoder import Decoder, Recording
from flmm_core.lmm.encoded_image import EncodedImage
from flmm_core.lmm.streaming import CancelCriteria, TokenStreamer
from flmm_core.lmm.tokens import LmmWords, PromptTokens
from flmm_core.lmm.trace import LmmTrace


@dataclass(frozen=True)
class Question:
    """What an answer is generated for; :meth:`~flmm_core.lmm.frozen_lmm.FrozenLmm.question` makes and checks it."""

    image: EncodedImage
    prompt: PromptTokens
    max_new_tokens: int
    on_text: Callable[[str], None] | None = None
    """Receives the whole answer so far, after each token."""
    on_trace: Callable[[LmmTrace], None] | None = None
    """Receives the trace of the answer so far, after each token."""
    cancelled: Callable[[], bool] | None = None
    """Asked after each token; the answer ends there once it is true."""


@torch.no_grad()
def generate(decoder: Decoder, words: LmmWords, question: Question, layer_weights: Tensor | None) -> LmmTrace:
    """Answer one question greedily.

    Args:
        decoder: runs the model.
        words: the model's tokenizer.
        question: what to answer.
        layer_weights: ``[k, l]`` float32 of the mixtures of hidden states; None for each layer by itself.
    """
    image, prompt, ids = question.image, question.prompt, question.prompt.ids
    cache, inputs = decoder.start(image, prompt, ids)
    with (
        decoder.caching_prefix(image, prompt, cache),
        decoder.recording(len(ids), cache, layer_weights) as recording,
        _static_decoding(decoder, question, cache, recording, layer_weights),
    ):
        output = decoder.model.generate(
            decoder.tensor(ids),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long, device=decoder.device),
            cache=cache,
            **{name: value for name, value in inputs.items() if name != "input_ids"},
            do_sample=False,
            max_new_tokens=question.max_new_tokens,
            return_dict_in_generate=True,
            streamer=streamer(decoder, words, [question], recording),
            stopping_criteria=stopping([question]),
        )
        emitted = output.sequences[0, len(ids) :].tolist()
        if emitted and emitted[-1] not in decoder.end_ids:
            # At the length limit the last token was never fed back. Feed it, so that it has a row of attention, too.
            decoder.model(input_ids=decoder.tensor(emitted[-1:]), cache=output.cache, use_cache=True)
    return traces(decoder, words, [question], [emitted], recording)[0]


def _static_decoding(
    decoder: Decoder, question: Question, cache: DynamicCache, recording: Recording, layer_weights: Tensor | None
) -> AbstractContextManager[None]:
    """Decode in static shapes where that pays: not for weights that only one command uses, nor with traces on the way."""
    if decoder.static is None or layer_weights is None or question.on_trace is not None:
        return nullcontext()
    positions = len(question.prompt.ids) + question.max_new_tokens
    return decoder.static.decoding(cache, recording.attention, recording.states, positions=positions)


def streamer(decoder: Decoder, words: LmmWords, questions: Sequence[Question], recording: Recording) -> TokenStreamer | None:
    """Reports answers while they are generated; None without a callback, as decoding each token's text costs time."""
    if not any(question.on_text or question.on_trace for question in questions):
        return None

    def report(emitted: Sequence[Sequence[int]]) -> None:
        for i, (question, ids) in enumerate(zip(questions, emitted, strict=True)):
            written = _written(decoder, words, question, ids, over=False)
            if not written.answer or written.count < len(ids):  # a thought, or what follows the answer in a batch
                continue
            if question.on_text:
                question.on_text(words.decode(written.answer)[written.skipped :].strip())
            if question.on_trace and len(written.answer) > 1:  # the last token was not fed back yet, and has no row
                before = [ids[:-1] for ids in emitted]
                question.on_trace(traces(decoder, words, questions, before, recording)[i])

    return TokenStreamer(report)


def stopping(questions: Sequence[Question], *more: StoppingCriteria) -> StoppingCriteriaList:
    """Criteria that end answers, apart from the LMM's own end token."""
    asked = [question.cancelled for question in questions]
    return StoppingCriteriaList([*([CancelCriteria(asked)] if any(asked) else []), *more])


def traces(
    decoder: Decoder,
    words: LmmWords,
    questions: Sequence[Question],
    emitted: Sequence[Sequence[int]],
    recording: Recording,
) -> tuple[LmmTrace, ...]:
    """Traces of the answers of a batch whose prompts end in one column.

    Args:
        decoder: that ran.
        words: the model's tokenizer.
        questions: of the batch.
        emitted: the token ids that each got, its end token and what follows it included.
        recording: of the batch.
    """
    start = max(len(question.prompt.ids) for question in questions)
    answers = [_written(decoder, words, question, ids, over=True) for question, ids in zip(questions, emitted, strict=True)]
    ranges = [(start + len(one.thought), start + one.count) for one in answers]
    attention = recording.attention.split(ranges, [start - len(question.prompt.ids) for question in questions])
    states = recording.states.split(ranges)
    found = []
    for question, written, rows, mixed in zip(questions, answers, attention, states, strict=True):
        text, offsets = words.decode_with_offsets(written.answer, skip=written.skipped)
        found.append(
            LmmTrace(
                text=text,
                token_ids=tuple(written.answer),
                token_offsets=offsets,
                ended=written.ended,
                states=mixed,
                layouts=question.image.layouts,
                image_starts=question.prompt.image_starts,
                attention=rows,
                thought_ids=tuple(written.thought),
            )
        )
    return tuple(found)


@dataclass(frozen=True)
class _Written:
    """What the LMM wrote for one question, without an end token."""

    thought: Sequence[int]
    answer: Sequence[int]
    skipped: int
    """Characters of the answer's first token that belong to the thought's mark."""
    ended: bool
    """Whether the LMM ended it itself."""

    @property
    def count(self) -> int:
        """Tokens of thought and answer."""
        return len(self.thought) + len(self.answer)


def _written(decoder: Decoder, words: LmmWords, question: Question, emitted: Sequence[int], *, over: bool) -> _Written:
    """The parts of what was emitted; with ``over``, nothing follows."""
    ends = decoder.end_ids
    wanted = emitted[: question.max_new_tokens]
    end = next((i for i, token in enumerate(wanted) if token in ends), None)
    own = wanted if end is None else wanted[:end]
    length, skipped = words.thought(question.prompt.ids, own, over=over or end is not None)
    return _Written(own[:length], own[length:], skipped, end is not None)
