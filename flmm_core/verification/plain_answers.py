"""Answers of an LMM by ``model.generate`` of transformers alone, before the attention recorder is installed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel

from flmm_core.families import LoadedLmm, PreparedImages
from flmm_core.lmm.attention_recorder import ATTENTION_NAME
from flmm_core.lmm.tokens import LmmWords

END = -1
"""Id that stands for any end token."""

_ROUNDINGS = 4
"""Two scores may swap by rounding if they differ by less than this many units in the last place of the largest score."""


@dataclass(frozen=True)
class PlainAnswer:
    """An answer of ``model.generate``."""

    ids: tuple[int, ...]
    """Ids of the ``t`` tokens, with :data:`END` in place of an end token."""
    near: tuple[Mapping[int, float], ...]
    """For each token the ids whose scores are within rounding of the best, and their distance to it; empty in float32."""


def plain_answers(
    loaded: LoadedLmm, images: Mapping[str, Image.Image], questions: Sequence[str], *, max_new_tokens: int
) -> Iterator[tuple[tuple[str, str], PlainAnswer]]:
    """Answer every question about every image by ``model.generate``, greedily.

    Args:
        loaded: an LMM without the attention recorder.
        images: RGB, by name.
        questions: the user's words.
        max_new_tokens: length limit of an answer.

    Yields:
        The name of the image with the question, and the answer.

    Raises:
        ValueError: the attention recorder is installed.
    """
    model, family = loaded.model.eval(), loaded.family
    # transformers has set_attn_implementation, but no public way to ask which one is set.
    if model.config.get_text_config()._attn_implementation == ATTENTION_NAME:
        raise ValueError("model: expected one without the attention recorder, got one that has it")
    words = LmmWords(tokenizer=loaded.tokenizer, family=family)
    ends = _end_ids(model)
    for name, image in images.items():
        prepared = family.prepare([image])
        for question in questions:
            ids = torch.tensor([words.prompt_tokens(question, prepared.layouts, chat=True).ids], device=model.device)
            output: Any = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                **_plain_inputs(loaded, ids, prepared),
                do_sample=False,
                max_new_tokens=max_new_tokens,
                return_dict_in_generate=True,
                output_scores=True,
            )
            written = output.sequences[0, ids.shape[1] :].tolist()
            near = tuple(_near(step[0], model.dtype, ends) for step in output.scores)
            yield (name, question), PlainAnswer(tuple(END if token in ends else token for token in written), near)


def _plain_inputs(loaded: LoadedLmm, ids: Tensor, prepared: PreparedImages) -> dict[str, Any]:
    """Inputs of ``generate`` beside the ids: pixel values if the model runs its own vision tower, else embeddings."""
    model, family = loaded.model, loaded.family
    given = family.model_inputs(model, ids, family.encode(model, prepared))
    given.pop("input_ids", None)
    if given.pop("mm_encoder_outputs", None) is None:
        return given
    pixels = {
        name: value.to(model.device, model.dtype if value.is_floating_point() else value.dtype)
        for name, value in prepared.inputs.items()
    }
    return {**given, **pixels}


def _end_ids(model: PreTrainedModel) -> set[int]:
    ends = model.generation_config.eos_token_id
    return set() if ends is None else {ends} if isinstance(ends, int) else set(ends)


def _near(scores: Tensor, dtype: torch.dtype, ends: set[int]) -> dict[int, float]:
    """Ids whose scores (``[vocabulary]``) are within rounding of the best, with their distance to it; none in float32."""
    if torch.finfo(dtype).bits > 16:
        return {}
    scores = scores.float()
    tolerance = _ROUNDINGS * torch.finfo(dtype).eps * scores[scores.isfinite()].abs().max()
    gaps = scores.max() - scores
    near: dict[int, float] = {}
    for token in (gaps < tolerance).nonzero()[:, 0].tolist():
        key, gap = END if token in ends else token, float(gaps[token])
        near[key] = min(gap, near.get(key, gap))
    return near
