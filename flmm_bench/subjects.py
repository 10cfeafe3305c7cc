"""The models that are measured: the shipped one or a given one, and random ones with layers of the shape of a 7B LLaVA's.

Time and memory do not depend on the weights. As random models write nonsense, phrases are fixed ranges of tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from segment_anything.build_sam import _build_sam
from segment_anything.modeling import Sam
from transformers import (
    AutoModelForImageTextToText,
    AutoTokenizer,
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaNextConfig,
    PreTrainedConfig,
)

from flmm_core.config import DEFAULT_MODEL, GroundingConfig
from flmm_core.families.llava import LlavaFamily
from flmm_core.families.llava_next import LlavaNextVicunaFamily
from flmm_core.heads.grounding_heads import GroundingHeads, HeadsConfig
from flmm_core.heads.unet import UNetConfig
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.lmm.trace import LmmTrace
from flmm_core.pipeline import GroundingPipeline
from flmm_core.sam.refiner import SamRefiner
from flmm_core.types import KeywordSpan
from flmm_core.weights.sources import registered_parts

PHRASES = 4
"""Phrases of an answer."""
SAMS = {"ViT-B": (768, 12, 12, [2, 5, 8, 11]), "ViT-L": (1024, 24, 16, [5, 11, 17, 23])}
"""Width, depth, heads and global blocks of SAM's image encoders."""


SPANS = tuple((3 * i, 3 * i + 2) for i in range(PHRASES))
"""Token ranges of the phrases: two of every three tokens at the start of an answer."""


class FixedPhrases(GroundingPipeline):
    """A pipeline whose phrases are always :data:`SPANS`."""

    def keywords(self, trace: LmmTrace) -> tuple[KeywordSpan, ...]:
        """The spans of :data:`SPANS`, without text."""
        return tuple(KeywordSpan("", 0, 0, *span) for span in SPANS)


def random_images(height: int, width: int, count: int) -> tuple[np.ndarray, ...]:
    """Different images ``[H, W, 3]`` uint8 of noise."""
    random = np.random.default_rng(0)
    return tuple(random.integers(0, 256, (height, width, 3), dtype=np.uint8) for _ in range(count))


def random_sam(kind: str) -> Sam:
    """A SAM with random weights of a kind in :data:`SAMS`."""
    width, depth, heads, everywhere = SAMS[kind]
    return _build_sam(width, depth, heads, everywhere).eval()


def random_lmm(
    *,
    anyres: bool,
    layers: int,
    width: int = 4096,
    vision_layers: int = 4,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> FrozenLmm:
    """A LLaVA, or an anyres LLaVA-NeXT, with layers of the 7B model's shape.

    Args:
        anyres: LLaVA-NeXT; an image of 672 x 672 gets 2,928 tokens.
        layers: of the decoder; the 7B model has 32.
        width: hidden size; 4096 is the 7B model's, with 32 heads and 11,008 hidden units.
        vision_layers: of the vision tower, which is as wide as CLIP ViT-L; that has 24.
        device: where the model is made.
        dtype: number format of the model.
    """
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(registered_parts(DEFAULT_MODEL)["lmm"])
    heads = width // 128
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=width * 11008 // 4096, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=heads, max_position_embeddings=8192,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=None, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=vision_layers, num_attention_heads=16, image_size=336,
        patch_size=14,
    )  # fmt: skip
    parts: dict[str, Any] = {"vision_config": vision, "text_config": text}
    parts["image_token_index"] = tokenizer.convert_tokens_to_ids("<image>")
    family: type[LlavaFamily] = LlavaFamily
    config: PreTrainedConfig = LlavaConfig(**parts)
    if anyres:
        family = LlavaNextVicunaFamily
        config = LlavaNextConfig(**parts, image_grid_pinpoints=[[336, 672], [672, 336], [672, 672]])
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    model.generation_config.eos_token_id = None
    images = CLIPImageProcessor(size={"shortest_edge": 336}, crop_size=336)
    made = family(model=model, tokenizer=tokenizer, image_processor=images)
    return FrozenLmm(model=model, tokenizer=tokenizer, family=made)


def random_pipeline(lmm: FrozenLmm, sam: Sam) -> GroundingPipeline:
    """A pipeline of an LMM, a SAM and random heads that fit them."""
    torch.manual_seed(1)
    unet = UNetConfig(lmm.shape.channels)
    config = HeadsConfig(unet, lmm.shape.layers, lmm.shape.hidden_size, keyword_selector=False, presence=False)
    heads = GroundingHeads(config=config, sam=SamRefiner(sam=sam)).eval()
    return FixedPhrases(lmm=lmm, heads=heads, config=GroundingConfig(image_cache=8192))


def loaded_pipeline(lmm: str, heads: str, sam: str, *, device: str = "cpu", dtype: str = "float32") -> GroundingPipeline:
    """A pipeline of saved parts; every phrase is refined, also those of absent objects."""
    return FixedPhrases.from_pretrained(lmm, heads, sam, device=device, dtype=dtype, presence_threshold=0.0, image_cache=8192)


def shipped_pipeline(**options: str) -> GroundingPipeline:
    """A pipeline of the shipped model; ``options`` as of :func:`loaded_pipeline`."""
    parts = registered_parts(DEFAULT_MODEL)
    return loaded_pipeline(parts["lmm"], parts["heads"], parts["sam"], **options)
