"""The naive path to the same masks: eager attention that returns all its maps, and no caching.

Each command encodes its image; ``generate`` returns attention and hidden states of every layer, token and position; phrases
are refined one by one. Only the benchmark and its tests use it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image

from flmm_core.families import ImageLayout
from flmm_core.heads.grounding_heads import GroundingHeads, trained
from flmm_core.lmm import attention_recorder
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.pipeline import GroundingPipeline

EVERYTHING = {"return_dict_in_generate": True, "output_attentions": True, "output_hidden_states": True}
"""Options of ``generate`` that return everything."""


@contextmanager
def attention_of(lmm: FrozenLmm, kind: str) -> Iterator[None]:
    """Use an attention of transformers, ``eager`` or ``sdpa``, in the decoder inside the block."""
    text = lmm.model.config.get_text_config()
    name = next(name for name in lmm.model.config.sub_configs if getattr(lmm.model.config, name, None) is text)
    lmm.model.set_attn_implementation({name: kind})
    try:
        yield
    finally:
        attention_recorder.install(lmm.model)


@contextmanager
def pytorch_heads(heads: GroundingHeads) -> Iterator[None]:
    """Run the heads' networks in PyTorch inside the block, whatever engine they have."""
    engines = heads.mask_head.engine, heads.sam.encoder_engine, heads.sam.decoder_engine
    heads.mask_head.engine = heads.sam.encoder_engine = heads.sam.decoder_engine = None
    try:
        yield
    finally:
        heads.mask_head.engine, heads.sam.encoder_engine, heads.sam.decoder_engine = engines


@torch.no_grad()
def generate(lmm: FrozenLmm, image: np.ndarray, text: str, tokens: int, **options: Any) -> tuple[Any, tuple[ImageLayout, int]]:
    """``model.generate`` on an image and a text; only preprocessing and prompt are this project's.

    Returns:
        The output of ``generate``; the image's layout and the position of its first token in the prompt.
    """
    prepared = lmm.family.prepare([Image.fromarray(image)])
    features = lmm.family.encode(lmm.model, prepared)
    prompt = lmm.words.prompt_tokens(text, prepared.layouts, chat=True)
    ids = torch.tensor([list(prompt.ids)], device=lmm.device)
    inputs = lmm.family.model_inputs(lmm.model, ids, features)
    inputs.pop("input_ids", None)
    output = lmm.model.generate(
        ids, attention_mask=torch.ones_like(ids), **inputs, do_sample=False, max_new_tokens=tokens, use_cache=True, **options
    )
    return output, (prepared.layouts[0], prompt.image_starts[0])


@torch.no_grad()
def chat(
    pipeline: GroundingPipeline, image: np.ndarray, text: str, tokens: int, spans: Sequence[tuple[int, int]]
) -> list[np.ndarray]:
    """Masks ``[H, W]`` bool of an answer's phrases, by the naive path.

    Args:
        pipeline: whose parts are used.
        image: ``[H, W, 3]`` uint8 RGB.
        text: the user's words.
        tokens: most tokens of the answer.
        spans: token ranges of the phrases in the answer.
    """
    lmm, heads = pipeline.lmm, trained(pipeline.heads, "bench")
    with attention_of(lmm, "eager"):
        output, (layout, start) = generate(lmm, image, text, tokens, **EVERYTHING)
    with pytorch_heads(heads):
        return _masks(heads, output, layout, start, image, spans)


def _masks(
    heads: GroundingHeads, output: Any, layout: ImageLayout, start: int, image: np.ndarray, spans: Sequence[tuple[int, int]]
) -> list[np.ndarray]:
    columns = slice(start, start + len(layout.ids))
    # Step 0 holds the prompt's rows; step i those of the token that step i-1 emitted.
    rows = torch.stack([torch.stack([layer[0, :, -1, columns] for layer in step]) for step in output.attentions[1:]], dim=2)
    states = torch.stack([torch.stack([layer[0, -1] for layer in step[1:]]) for step in output.hidden_states[1:]], dim=1)
    mixed = heads.mix(states)
    geometry = layout.geometry
    sam = heads.sam.encode_image(image)
    coarse, texts = [], []
    for first, last in spans:
        maps = layout.maps(rows[:, :, first:last].mean(dim=2, keepdim=True).float())
        coarse.append(heads.coarse_masks(maps, geometry).logits)
        texts.append(heads.text_tokens(mixed[:, first:last]))
    # All phrases of an answer share the padding of the prompts.
    prompts, masks = heads.sam.prompts(sam, torch.cat(coarse), texts), []
    for i, words in enumerate(texts):
        low_res, _ = heads.sam.decoder_network(sam.embedding, prompts.masks[[i]], prompts.boxes[[i]], words[None])
        masks.append((heads.sam.to_image(low_res[:, 0], sam)[0] > 0).cpu().numpy())
    return masks
