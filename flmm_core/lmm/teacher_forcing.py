"""Teacher forcing: the LMM reads given answers as if it had written them, recorded; nothing is generated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flmm_core.lmm.decoder import Decoder
from flmm_core.lmm.encoded_image import EncodedImage
from flmm_core.lmm.tokens import AnswerTokens
from flmm_core.lmm.trace import LmmTrace


@torch.no_grad()
def teacher_force(
    decoder: Decoder,
    image: EncodedImage,
    batch: Sequence[AnswerTokens],
    answers: Sequence[str],
    layer_weights: Tensor | None,
) -> tuple[LmmTrace, ...]:
    """Read answers about one image in one pass.

    Args:
        decoder: runs the model.
        image: that all prompts are about.
        batch: prompts and answers as tokens; the prompts begin alike. Shorter sequences are padded at their right.
        answers: their texts.
        layer_weights: ``[k, l]`` float32 of the mixtures of hidden states; None for each layer by itself.
    """
    sequences = [tokens.prompt.ids + tokens.ids for tokens in batch]
    ranges = [(len(tokens.prompt.ids), len(ids)) for tokens, ids in zip(batch, sequences, strict=True)]
    longest, start = max(map(len, sequences)), min(first for first, _ in ranges)
    decoder.check_length(longest, image.image_tokens, 0)
    cache, inputs = decoder.start(image, batch[0].prompt, sequences[0])
    inputs = inputs or decoder.rest(sequences, cache)
    with (
        decoder.caching_prefix(image, batch[0].prompt, cache),
        decoder.recording(start, cache, layer_weights) as recording,
    ):
        # As a tensor, not a number: for a number layers that share keys compute the kept positions only (Gemma 4).
        decoder.model(**inputs, cache=cache, use_cache=True, logits_to_keep=decoder.tensor([-1])[0])
        attention, states = recording.attention.split(ranges), recording.states.split(ranges)
    return tuple(
        LmmTrace(
            text=answer,
            token_ids=tuple(tokens.ids),
            token_offsets=tokens.offsets,
            ended=True,
            states=mixed,
            layouts=image.layouts,
            image_starts=tokens.prompt.image_starts,
            attention=rows,
        )
        for tokens, answer, rows, mixed in zip(batch, answers, attention, states, strict=True)
    )
