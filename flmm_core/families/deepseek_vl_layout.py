"""DeepSeek-VL's published layout (``multi_modality``): its config and weights, as transformers has them.

The config refers to vision towers by name only. This file is independent of images and words.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    DeepseekVLConfig,
    DeepseekVLHybridConfig,
    LlamaConfig,
    PreTrainedTokenizerBase,
    SamVisionConfig,
    SiglipVisionConfig,
)

from flmm_core.families.checkpoint import Checkpoint

MODEL_TYPE = "multi_modality"
Norm = tuple[Sequence[float], Sequence[float]]
"""Mean and standard deviation."""
SIGLIP_TOWERS: Mapping[str, Mapping[str, Any]] = {
    "siglip_large_patch16_384": {"width": 1024, "layers": 24, "heads": 16, "patch_size": 16, "mlp_ratio": 4},
}
"""SigLIP towers by their names in configs."""
SAM_TOWER = "sam_b_downsample"
"""The one SAM tower; the defaults of ``SamVisionConfig`` are its sizes."""

_NAMES = (
    (r"language_model\.lm_head\.", "lm_head."),
    (r"language_model\.model\.", "model.language_model."),
    (r"aligner\.layers\.0\.", "model.aligner.linear1."),
    (r"aligner\.layers\.2\.", "model.aligner.linear2."),
    (r"aligner\.layers\.1\.", "model.aligner.proj."),
    (r"aligner\.low_up_proj\.", "model.aligner.vision_proj."),
    (r"aligner\.high_up_proj\.", "model.aligner.high_res_vision_proj."),
    (r"vision_model\.vision_tower_low\.vision_tower\.", "vision_model.vision_tower."),
    (r"vision_model\.vision_tower\.pos_embed", "model.vision_model.embeddings.position_embedding.weight"),
    (r"vision_model\.vision_tower\.patch_embed\.proj\.", "model.vision_model.embeddings.patch_embedding."),
    (r"vision_model\.vision_tower\.norm\.", "model.vision_model.post_layernorm."),
    (r"vision_model\.vision_tower\.blocks\.(\d+)\.attn\.proj\.", r"model.vision_model.encoder.layers.\1.self_attn.out_proj."),
    (r"vision_model\.vision_tower\.blocks\.(\d+)\.attn\.qkv\.", r"model.vision_model.encoder.layers.\1.self_attn.qkv."),
    (r"vision_model\.vision_tower\.blocks\.(\d+)\.norm(\d)\.", r"model.vision_model.encoder.layers.\1.layer_norm\2."),
    (r"vision_model\.vision_tower\.blocks\.(\d+)\.mlp\.", r"model.vision_model.encoder.layers.\1.mlp."),
    (r"vision_model\.vision_tower_high\.vision_tower\.hd_alpha_downsamples", "model.high_res_vision_alpha"),
    (r"vision_model\.vision_tower_high\.vision_tower\.downsamples\.0\.", "model.high_res_vision_proj.conv1."),
    (r"vision_model\.vision_tower_high\.vision_tower\.downsamples\.1\.", "model.high_res_vision_proj.conv2."),
    (r"vision_model\.vision_tower_high\.vision_tower\.neck_hd\.", "model.high_res_vision_neck."),
    (r"vision_model\.vision_tower_high\.vision_tower\.", "model.high_res_vision_model.vision_encoder."),
    (r"(.*_vision_neck|.*vision_encoder\.neck)\.0\.", r"\1.conv1."),
    (r"(.*_vision_neck|.*vision_encoder\.neck)\.1\.", r"\1.layer_norm1."),
    (r"(.*_vision_neck|.*vision_encoder\.neck)\.2\.", r"\1.conv2."),
    (r"(.*_vision_neck|.*vision_encoder\.neck)\.3\.", r"\1.layer_norm2."),
    (r"(.*vision_encoder)\.patch_embed\.proj\.", r"\1.patch_embed.projection."),
    (r"(.*vision_encoder)\.blocks\.(\d+)\.norm(\d)\.", r"\1.layers.\2.layer_norm\3."),
    (r"(.*vision_encoder)\.blocks\.(\d+)\.", r"\1.layers.\2."),
)
"""Prefixes of names and their replacements, applied in this order."""
_OWN_NORM = {"pixel_mean": [0.0] * 3, "pixel_std": [1.0] * 3}
"""Normalisation inside a tower, unless its config states another one."""
_UNUSED = re.compile(
    r"vision_model\.(vision_tower\.|vision_tower_low\.vision_tower\.)attn_pool\.|vision_model\.\w+_layer_norm\."
)
"""Weights of the published model that are not used."""


def text_config(checkpoint: Checkpoint) -> LlamaConfig:
    """Config of the decoder, with the defaults of its kind filled in."""
    return LlamaConfig.from_dict(checkpoint.config["language_config"])


def model_config(checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase) -> DeepseekVLConfig | DeepseekVLHybridConfig:
    """Config of the whole model; of the hybrid one if the checkpoint has two towers."""
    params, text = checkpoint.config["vision_config"]["params"], text_config(checkpoint)
    tag = checkpoint.json("processor_config.json").get("image_tag", "<image_placeholder>")
    towers = {**SIGLIP_TOWERS, **checkpoint.settings.get("siglip_entry", {})}
    common: dict[str, Any] = {
        "text_config": text,
        "image_token_id": tokenizer.convert_tokens_to_ids(tag),
        "tie_word_embeddings": text.tie_word_embeddings,
    }
    if "high_res_cfg" not in params:
        return DeepseekVLConfig(vision_config=_siglip(params, towers), **common)
    high = params["high_res_cfg"]
    if high["model_name"] != SAM_TOWER:
        raise ValueError(f"vision tower: expected {SAM_TOWER}, got {high['model_name']}")
    sam = SamVisionConfig(image_size=high["image_size"])
    return DeepseekVLHybridConfig(vision_config=_siglip(params["low_res_cfg"], towers), high_res_vision_config=sam, **common)


def _siglip(params: Mapping[str, Any], towers: Mapping[str, Mapping[str, Any]]) -> SiglipVisionConfig:
    """The tower without its pooling head, with the exact GELU; its last norm comes after the selected layer."""
    name, select = params["model_name"], int(params.get("select_layer", -1))
    if name not in towers:
        raise ValueError(f"vision tower: expected one of {', '.join(sorted(towers))}, got {name}")
    sizes = towers[name]
    return SiglipVisionConfig(
        hidden_size=sizes["width"],
        intermediate_size=int(sizes["width"] * sizes["mlp_ratio"]),
        num_hidden_layers=select if select > 0 else sizes["layers"] + select + 1,
        num_attention_heads=sizes["heads"],
        image_size=params["image_size"],
        patch_size=sizes["patch_size"],
        hidden_act="gelu",
        vision_use_head=False,
    )


def background(checkpoint: Checkpoint) -> tuple[int, int, int]:
    """RGB 0..255 around an image: the mean colour."""
    red, green, blue = (int(channel * 255) for channel in checkpoint.json("preprocessor_config.json")["image_mean"])
    return red, green, blue


def norms(checkpoint: Checkpoint) -> dict[str, Norm]:
    """Of each input of the model: what the processor does, if it does, and then what the tower does itself."""
    processor, params = checkpoint.json("preprocessor_config.json"), checkpoint.config["vision_config"]["params"]
    towers = {"pixel_values": params.get("low_res_cfg", params)}
    if "high_res_cfg" in params:
        towers["high_res_pixel_values"] = params["high_res_cfg"]
    mean, std = torch.zeros(3), torch.ones(3)
    if processor.get("do_normalize", True):
        mean, std = torch.tensor(processor["image_mean"]), torch.tensor(processor["image_std"])
    found: dict[str, Norm] = {}
    for name, tower in towers.items():
        own_mean, own_std = (torch.tensor(tower.get(key) or default) for key, default in _OWN_NORM.items())
        found[name] = ((mean + std * own_mean).tolist(), (std * own_std).tolist())
    return found


def weights(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """All weights that are used, by transformers' names."""
    return {name: value for key, tensor in _tensors(checkpoint) for name, value in _renamed(key, tensor)}


def _tensors(checkpoint: Checkpoint) -> Iterator[tuple[str, Tensor]]:
    index = checkpoint.file("model.safetensors.index.json")
    shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) if index else {"model.safetensors"}
    for shard in sorted(shards):
        yield from load_file(checkpoint.require(shard)).items()


def _renamed(key: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    if _UNUSED.match(key):
        return
    name = key
    for pattern, replacement in _NAMES:
        name = re.sub(rf"^{pattern}", replacement, name)
    if ".self_attn.qkv." in name:
        for part, value in zip("qkv", tensor.chunk(3), strict=True):
            yield name.replace(".qkv.", f".{part}_proj."), value.contiguous()
    else:
        yield name, tensor[0] if name.endswith("position_embedding.weight") else tensor
