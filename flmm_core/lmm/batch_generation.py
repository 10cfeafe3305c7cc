"""Greedy generation of several answers in one batch: each is the answer that its question gets alone, but for rounding.

Prompts are read one by one, each behind its image's prefix; then each step of the decoder writes one token of every answer.
Static shapes are not used.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from flmm_core.lmm.decoder import Decoder
from flmm_core.lmm.generation import Question, stopping, streamer, traces
from flmm_core.lmm.prefix_cache import stack_left_padded
from flmm_core.lmm.streaming import LengthCriteria
from flmm_core.lmm.tokens import LmmWords
from flmm_core.lmm.trace import LmmTrace


@torch.no_grad()
def generate_batch(
    decoder: Decoder, words: LmmWords, questions: Sequence[Question], layer_weights: Tensor | None
) -> tuple[LmmTrace, ...]:
    """Answer several questions about any images.

    Args:
        decoder: runs the model; its family reuses prefixes and reads batches.
        words: the model's tokenizer.
        questions: what to answer.
        layer_weights: ``[k, l]`` float32 of the mixtures of hidden states; None for each layer by itself.
    """
    caches, states = zip(*(_read_but_last(decoder, question) for question in questions), strict=True)
    cache, start = stack_left_padded(caches), max(len(question.prompt.ids) for question in questions)
    decoder.family.restore_state(decoder.model, None if states[0] is None else torch.cat(states))
    # Padding repeats the sequence's first token: penalties on tokens that occurred before are not changed by it.
    paddings = [start - len(question.prompt.ids) for question in questions]
    ids = [padding * q.prompt.ids[:1] + q.prompt.ids for padding, q in zip(paddings, questions, strict=True)]
    # One token more than is wanted: the last one that is wanted was then fed back, and has a row of attention.
    ends = torch.tensor([start + question.max_new_tokens + 1 for question in questions], device=decoder.device)
    with decoder.recording(start, cache, layer_weights) as recording:
        output = decoder.model.generate(
            decoder.tensor(*ids),
            attention_mask=decoder.tensor(*([0] * padding + [1] * (start - padding) for padding in paddings)),
            cache=cache,
            do_sample=False,
            max_length=int(ends.max()),
            return_dict_in_generate=True,
            streamer=streamer(decoder, words, questions, recording),
            stopping_criteria=stopping(questions, LengthCriteria(ends)),
        )
    return traces(decoder, words, questions, output.sequences[:, start:].tolist(), recording)


def _read_but_last(decoder: Decoder, question: Question) -> tuple[DynamicCache, Any]:
    """Keys and values of a prompt but for its last token, and what the model itself keeps of it."""
    image, prompt, ids = question.image, question.prompt, question.prompt.ids[:-1]
    cache, inputs = decoder.start(image, prompt, ids)
    with decoder.caching_prefix(image, prompt, cache):
        if inputs or cache.get_seq_length() < len(ids):
            decoder.model(**(inputs or decoder.rest([ids], cache)), cache=cache, use_cache=True, logits_to_keep=1)
    return cache, decoder.family.model_state(decoder.model)
