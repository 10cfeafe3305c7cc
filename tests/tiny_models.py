"""Tiny random models in the layouts that the loaders read; built in a few hundred milliseconds, no network."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from flmm_core.heads.grounding_heads import GroundingHeads, HeadsConfig
from flmm_core.heads.unet import UNetConfig
from flmm_core.loading.checkpoints import save_heads
from flmm_core.sam.refiner import SamRefiner
from flmm_tabletop.sam_tiny import TinySamConfig, build_tiny_sam, save_tiny_sam
from flmm_tabletop.vision_tower import TabletopTowerConfig

TEXTS = [
    "USER: Please give me a description of the image. ASSISTANT: There is a red mug and a blue bowl on the table.",
    "where is the lemon? The yellow lemon is left of the green can. pick up the banana, please. two cubes and one ball",
]


def tokenizer() -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<unk>", "<s>", "</s>", "<pad>", "<image>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet))
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<pad>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip


def save_llava(folder: Path, *, kv_heads: int = 4, tower: str = "clip", seed: int = 0) -> Path:
    """A LLaVA of 3 layers x 4 heads on 56-pixel images, 4 x 4 image tokens."""
    torch.manual_seed(seed)
    words = tokenizer()
    text = LlamaConfig(
        vocab_size=len(words), hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=kv_heads, max_position_embeddings=512, initializer_range=0.3,
        bos_token_id=1, eos_token_id=2, pad_token_id=3,
    )  # fmt: skip
    if tower == "clip":
        vision = CLIPVisionConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, image_size=56, patch_size=14,
            projection_dim=16,
        )  # fmt: skip
        layer, strategy = -2, "default"
    else:
        vision = TabletopTowerConfig(
            image_size=64,
            patch_size=16,
            stage_widths=[8, 16, 32],
            stage_blocks=[1, 1, 1],
            position_channels=8,
            hidden_size=9,
        )
        layer, strategy = -1, "full"
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=words.convert_tokens_to_ids("<image>"),
        vision_feature_layer=layer, vision_feature_select_strategy=strategy, image_seq_length=16,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config).eval()
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 56}, crop_size=56).save_pretrained(folder)
    return folder


def random_image(height: int = 48, width: int = 64, seed: int = 0) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8)
    return Image.fromarray(values).resize((width, height), Image.Resampling.BICUBIC)


SAM_CONFIG = TinySamConfig(img_size=64, stem_width=8, fine_width=16, middle_width=16, coarse_width=16, blocks=1, decoder_mlp=64)


def tiny_sam(seed=0):
    torch.manual_seed(seed)
    return build_tiny_sam(SAM_CONFIG)


def tiny_heads(*, layers=3, heads=4, hidden=32, selector=True, presence=True, seed=1):
    torch.manual_seed(seed)
    unet = UNetConfig(layers * heads, base_channels=4)
    config = HeadsConfig(unet, layers, hidden, keyword_selector=selector, presence=presence)
    heads_module = GroundingHeads(config=config, sam=SamRefiner(sam=tiny_sam(seed)))
    with torch.no_grad():
        heads_module.text_layer_weights.normal_()
        for value in heads_module.state_dict().values():  # as files keep them, so that what is loaded is the same
            value.copy_(value.half())
    return heads_module


def save_model(folder: Path, *, kv_heads: int = 4) -> dict[str, str]:
    """All three parts; returns their folders by the names that commands and parameters give them."""
    save_llava(folder / "lmm", kv_heads=kv_heads)
    heads = tiny_heads()
    save_heads(heads, folder / "heads")
    save_tiny_sam(heads.sam.model, SAM_CONFIG, folder / "sam")
    return {part: str(folder / part) for part in ("lmm", "heads", "sam")}
