"""Small SAM 2 and HQ-SAM of transformers with random weights, to compare the shipped SAM with (docs/ablations.md).

Both have the input, stride and decoder of the shipped SAM, so that only the architecture differs.
"""

from __future__ import annotations

from transformers import Sam2Config, Sam2Model, SamHQConfig, SamHQModel

from flmm_core.sam.transformers_sam import Sam2, SamHq
from flmm_tabletop.sam_tiny import EMBEDDING, STRIDE, TinySamConfig

_TINY = TinySamConfig()
_CELLS = _TINY.img_size // STRIDE
_PROMPTS = {
    "hidden_size": EMBEDDING,
    "image_size": _TINY.img_size,
    "patch_size": STRIDE,
    "mask_input_channels": _TINY.mask_in_channels,
}
_DECODER = {"hidden_size": EMBEDDING, "mlp_dim": _TINY.decoder_mlp, "num_attention_heads": 8, "iou_head_hidden_dim": 256}


def build_tiny_sam2() -> Sam2Model:
    """A SAM 2 whose Hiera starts at stride 2, so that its embedding has stride 8."""
    widths = [16, 32, 96, 192]
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": widths[0],
        "image_size": [_TINY.img_size] * 2,
        "patch_stride": [2, 2],
        "blocks_per_stage": [1, 1, 3, 1],
        "embed_dim_per_stage": widths,
        "num_attention_heads_per_stage": [1, 2, 4, 8],
        "window_size_per_stage": [8, 4, 8, 4],
        "global_attention_blocks": [4],
    }
    vision = {
        "backbone_config": backbone,
        "backbone_channel_list": widths[::-1],
        "backbone_feature_sizes": [[_CELLS * finer] * 2 for finer in (4, 2, 1)],
        "fpn_hidden_size": EMBEDDING,
    }
    return Sam2Model(Sam2Config(vision_config=vision, prompt_encoder_config=_PROMPTS, mask_decoder_config=_DECODER))


def build_tiny_sam_hq() -> SamHQModel:
    """An HQ-SAM whose ViT has patches of 8 pixels."""
    width = 128
    vision = {
        "hidden_size": width,
        "output_channels": EMBEDDING,
        "num_hidden_layers": 5,
        "num_attention_heads": 4,
        "image_size": _TINY.img_size,
        "patch_size": STRIDE,
        "window_size": 8,
        "global_attn_indexes": [2, 4],
        "mlp_dim": 4 * width,
        "num_pos_feats": EMBEDDING // 2,
        "initializer_range": 0.02,
    }
    decoder = {**_DECODER, "vit_dim": width}
    return SamHQModel(SamHQConfig(vision_config=vision, prompt_encoder_config=_PROMPTS, mask_decoder_config=decoder))


KINDS = {"sam2": (build_tiny_sam2, Sam2), "sam_hq": (build_tiny_sam_hq, SamHq)}
"""Of each kind the function that builds it, and the class that adapts it to the refiner."""
