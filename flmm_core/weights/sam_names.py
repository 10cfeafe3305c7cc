"""Translates the weight names of transformers' `SamModel` into those of ``segment_anything``.

The weights are the same, one for one. They are loaded into the SAM of ``segment_anything``, whose norms in the mask decoder
divide by ``sqrt(var + 1e-5)``, as in training; those of transformers add 1e-6.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, TypeVar

MODEL_TYPE = "sam"
"""``model_type`` in the ``config.json`` of such a folder."""

_Value = TypeVar("_Value")

_COPIES = ("prompt_encoder.shared_embedding.positional_embedding",)
"""Entries that duplicate another tensor."""

_NAMES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"^shared_image_embedding\.positional_embedding$", "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
        (r"^vision_encoder\.", "image_encoder."),
        (r"^(image_encoder\.patch_embed)\.projection\.", r"\1.proj."),
        (r"^(image_encoder)\.layers\.(\d+)\.layer_norm(\d)\.", r"\1.blocks.\2.norm\3."),
        (r"^(image_encoder)\.layers\.", r"\1.blocks."),
        (r"^(image_encoder\.neck)\.conv1\.", r"\1.0."),
        (r"^(image_encoder\.neck)\.layer_norm1\.", r"\1.1."),
        (r"^(image_encoder\.neck)\.conv2\.", r"\1.2."),
        (r"^(image_encoder\.neck)\.layer_norm2\.", r"\1.3."),
        (r"^(prompt_encoder)\.point_embed\.", r"\1.point_embeddings."),
        (r"^(prompt_encoder)\.mask_embed\.conv1\.", r"\1.mask_downscaling.0."),
        (r"^(prompt_encoder)\.mask_embed\.layer_norm1\.", r"\1.mask_downscaling.1."),
        (r"^(prompt_encoder)\.mask_embed\.conv2\.", r"\1.mask_downscaling.3."),
        (r"^(prompt_encoder)\.mask_embed\.layer_norm2\.", r"\1.mask_downscaling.4."),
        (r"^(prompt_encoder)\.mask_embed\.conv3\.", r"\1.mask_downscaling.6."),
        (r"^(mask_decoder\.transformer)\.layer_norm_final_attn\.", r"\1.norm_final_attn."),
        (r"^(mask_decoder\.transformer\.layers\.\d+)\.layer_norm(\d)\.", r"\1.norm\2."),
        (r"^(mask_decoder)\.upscale_conv1\.", r"\1.output_upscaling.0."),
        (r"^(mask_decoder)\.upscale_layer_norm\.", r"\1.output_upscaling.1."),
        (r"^(mask_decoder)\.upscale_conv2\.", r"\1.output_upscaling.3."),
        # MLPs of three layers: first, one between, last.
        (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.layers\.0\.", r"\1.layers.1."),
        (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.proj_in\.", r"\1.layers.0."),
        (r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.proj_out\.", r"\1.layers.2."),
    )
)  # fmt: skip

_FIXED: dict[str, dict[str, Any]] = {
    "vision_config": {"hidden_act": "gelu", "use_abs_pos": True, "use_rel_pos": True, "layer_norm_eps": 1e-6},
    "prompt_encoder_config": {"hidden_act": "gelu"},
    "mask_decoder_config": {
        "hidden_act": "relu", "num_attention_heads": 8, "attention_downsample_rate": 2, "iou_head_depth": 3,
    },
}  # fmt: skip
"""Settings that are fixed in ``segment_anything`` and cannot all be read from weights."""


def is_sam_model(config: Mapping[str, Any]) -> bool:
    """Whether a ``config.json`` is that of a `SamModel`."""
    return config.get("model_type") == MODEL_TYPE


def check_sam_config(config: Mapping[str, Any]) -> None:
    """Refuse a `SamModel` that ``segment_anything`` cannot compute.

    Args:
        config: its ``config.json``; settings that it omits have the values of all SAMs.

    Raises:
        ValueError: names the setting.
    """
    for part, settings in _FIXED.items():
        for name, expected in settings.items():
            got = (config.get(part) or {}).get(name, expected)
            if got != expected:
                raise ValueError(f"{part}: expected {name} {expected!r} as in segment-anything, got {got!r}")


def segment_anything_names(entries: Mapping[str, _Value]) -> dict[str, _Value]:
    """Entries of a `SamModel` under the names of ``segment_anything``; unknown names are kept."""
    renamed: dict[str, _Value] = {}
    for name, value in entries.items():
        if name in _COPIES:
            continue
        for pattern, replacement in _NAMES:
            name = pattern.sub(replacement, name)
        renamed[name] = value
    return renamed
