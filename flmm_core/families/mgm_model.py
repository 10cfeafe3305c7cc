"""Mini-Gemini (arXiv 2403.18814) from transformers' parts: LLaVA with a second tower and patch-info mining.

A ConvNeXt looks at the image in more detail than CLIP does; before the projector each CLIP patch mines the details that
lie inside it. This file contains the layout of MGM's weights on the Hub; it is independent of prompts and image files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    CLIPVisionModel,
    ConvNextConfig,
    ConvNextModel,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedConfig,
)
from transformers.configuration_utils import SubConfigSpec

from flmm_core.errors import LoadError
from flmm_core.families.base import check_complete
from flmm_core.families.checkpoint import Checkpoint

TOWERS = {
    "clip-vit-large-patch14-336": "openai/clip-vit-large-patch14-336",
    "openclip-convnext-large-d-320-laion2b-s29b-b131k-ft-soup": "laion/CLIP-convnext_large_d_320.laion2B-s29B-b131K-ft-soup",
}
"""Hub names of the published checkpoints' towers, by the last part (lower case) of the paths that their configs name."""

_DETAIL_NAMES = {
    r"visual\.trunk\.stem\.0\.": "embeddings.patch_embeddings.",
    r"visual\.trunk\.stem\.1\.": "embeddings.layernorm.",
    r"visual\.trunk\.stages\.(\d+)\.downsample\.": r"encoder.stages.\1.downsampling_layer.",
    r"visual\.trunk\.stages\.(\d+)\.blocks\.(\d+)\.gamma": r"encoder.stages.\1.layers.\2.layer_scale_parameter",
    r"visual\.trunk\.stages\.(\d+)\.blocks\.(\d+)\.conv_dw\.": r"encoder.stages.\1.layers.\2.dwconv.",
    r"visual\.trunk\.stages\.(\d+)\.blocks\.(\d+)\.norm\.": r"encoder.stages.\1.layers.\2.layernorm.",
    r"visual\.trunk\.stages\.(\d+)\.blocks\.(\d+)\.mlp\.fc": r"encoder.stages.\1.layers.\2.pwconv",
    r"visual\.trunk\.head\.norm\.": "layernorm.",
}
"""OpenCLIP's ConvNeXt to transformers'; CLIP's head and text tower match no pattern and are left out."""

_LMM_NAMES = {
    r"lm_head\.": "lm_head.",
    r"model\.(embed_tokens|layers|norm)\.": r"model.language_model.\1.",
    r"model\.mm_projector\.0\.": "model.multi_modal_projector.linear_1.",
    r"model\.mm_projector\.2\.": "model.multi_modal_projector.linear_2.",
    r"model\.vlm_uni_query_projector\.": "mining.query.",
    r"model\.vlm_uni_aux_projector\.": "mining.key.",
    r"model\.vlm_uni_val_projector\.": "mining.value.",
}
_LMM_IGNORED = re.compile(r"model\.vision_tower(_aux)?\.|.*\.rotary_emb\.inv_freq$")
"""Frozen towers, which are read from their own files, and values computed from the config."""


class MgmConfig(LlavaConfig):
    """LLaVA's config with that of the second tower."""

    model_type = "mgm"
    sub_configs_defaults = {**LlavaConfig.sub_configs_defaults, "detail_config": SubConfigSpec(ConvNextConfig)}  # noqa: RUF012
    detail_config: dict[str, Any] | PreTrainedConfig | None = None


class PatchInfoMining(nn.Module):
    """Cross-attention of each patch to the details inside it: ``patch + softmax(query key^T / sqrt(d)) value``."""

    def __init__(self, patch_size: int, detail_size: int) -> None:
        super().__init__()
        self.query = nn.Sequential(nn.LayerNorm(patch_size), nn.Linear(patch_size, patch_size))
        self.key = nn.Sequential(nn.LayerNorm(detail_size), nn.Linear(detail_size, patch_size))
        self.value = nn.Sequential(nn.LayerNorm(detail_size), nn.Linear(detail_size, patch_size))

    def forward(self, patches: Tensor, details: Tensor) -> Tensor:
        """Add details to patches.

        Args:
            patches: ``[v, g * g, d]`` of views with ``g`` by ``g`` patches.
            details: ``[v, e, g * m, g * m]``; ``m`` by ``m`` of them lie inside each patch.

        Returns:
            ``[v, g * g, d]``.
        """
        views, count, size = patches.shape
        grid = round(count**0.5)
        if details.shape[-1] % grid:
            raise ValueError(f"details: expected a multiple of {grid} in each direction, got {details.shape[-1]}")
        inside = details.unflatten(3, (grid, -1)).unflatten(2, (grid, -1))  # [v, e, g, m, g, m]
        inside = inside.permute(0, 2, 4, 3, 5, 1).reshape(views, count, -1, details.shape[1])
        scores = self.query(patches)[:, :, None] @ self.key(inside).transpose(2, 3) / size**0.5
        return patches + (scores.softmax(dim=-1) @ self.value(inside))[:, :, 0]


class MgmForConditionalGeneration(LlavaForConditionalGeneration):
    """LLaVA's towers, projector and decoder, with mining between tower and projector."""

    config: MgmConfig

    def __init__(self, config: MgmConfig) -> None:
        super().__init__(config)
        detail: Any = config.detail_config
        vision: Any = config.vision_config
        self.detail_tower = ConvNextModel(detail)
        self.mining = PatchInfoMining(vision.hidden_size, sum(detail.hidden_sizes))
        self.post_init()

    def project_image(self, views: Tensor, image: Tensor) -> Tensor:
        """Features of one image, as its projector gives them.

        Args:
            views: ``[v, 3, S, S]``, the whole image, or its tiles in reading order and then the whole.
            image: ``[3, A, A]``, the whole image in detail.

        Returns:
            ``[v, g * g, d]``, the whole image first.
        """
        hidden = self.model.vision_tower(views, output_hidden_states=True).hidden_states
        patches = hidden[self.config.vision_feature_layer][:, 1:]
        projected: Tensor = self.model.multi_modal_projector(self.mining(patches, self._details(image, len(views))))
        return projected.roll(1, dims=0)

    def _details(self, image: Tensor, views: int) -> Tensor:
        """Stages of the tower on the first one's grid, for each view: ``[v, e, h, w]``."""
        output = self.detail_tower(image[None], output_hidden_states=True)
        stages = output.hidden_states[-self.detail_tower.config.num_stages :]
        size = stages[0].shape[-2:]
        details = torch.cat([F.interpolate(stage, size, mode="bilinear") for stage in stages], dim=1)
        if views == 1:
            return details
        grid = round((views - 1) ** 0.5)
        tiles = details[0].unflatten(2, (grid, -1)).unflatten(1, (grid, -1)).permute(1, 3, 0, 2, 4).flatten(0, 1)
        return torch.cat([tiles, F.interpolate(details, tiles.shape[-2:], mode="bilinear")])


def load_model(checkpoint: Checkpoint, text: PreTrainedConfig, *, dtype: torch.dtype) -> MgmForConditionalGeneration:
    """Build the model from the LMM's files and those of its two towers.

    Args:
        checkpoint: of the LMM.
        text: config of the decoder.
        dtype: number format of the model.
    """
    raw = checkpoint.config
    loaded: Any = CLIPVisionModel.from_pretrained(tower(checkpoint, "mm_vision_tower"), dtype=dtype, output_loading_info=True)
    clip, report = loaded
    check_complete(report)
    detail = _renamed(_weights(Checkpoint(tower(checkpoint, "mm_vision_tower_aux")), "open_clip_"), _DETAIL_NAMES)
    config = MgmConfig(
        vision_config=clip.config.to_dict(),
        text_config=text.to_dict(),
        detail_config=_detail_config(detail).to_dict(),
        vision_feature_layer=int(raw["mm_vision_select_layer"]),
    )
    whole = {name: value for name, value in _weights(checkpoint).items() if not _LMM_IGNORED.match(name)}
    state = _renamed(whole, _LMM_NAMES)
    if len(state) < len(whole):
        strange = sorted(name for name in whole if not _renamed({name: whole[name]}, _LMM_NAMES))
        raise LoadError(f"LMM {checkpoint.source}: expected MGM's weights only, got {strange[0]} too")
    state |= {f"model.vision_tower.{name}": value for name, value in clip.state_dict().items()}
    state |= {f"detail_tower.{name}": value for name, value in detail.items()}
    loaded = MgmForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=state, dtype=dtype, output_loading_info=True
    )
    model, report = loaded
    check_complete(report)
    if report["unexpected_keys"]:
        raise LoadError(
            f"LMM {checkpoint.source}: expected no weights of other parts, got {sorted(report['unexpected_keys'])[0]}"
        )
    built: MgmForConditionalGeneration = model
    return built


def _detail_config(state: dict[str, Tensor]) -> ConvNextConfig:
    """Sizes of a ConvNeXt, which its own config only names, from its weights."""
    places = [re.match(r"encoder\.stages\.(\d+)\.layers\.(\d+)\.dwconv\.bias", name) for name in state]
    depths: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for place in filter(None, places):
        stage = int(place[1])
        depths[stage] = depths.get(stage, 0) + 1
        sizes[stage] = len(state[place[0]])
    order = sorted(depths)
    return ConvNextConfig(
        num_stages=len(order), depths=[depths[stage] for stage in order], hidden_sizes=[sizes[stage] for stage in order]
    )


def _renamed(state: dict[str, Tensor], names: dict[str, str]) -> dict[str, Tensor]:
    """Weights under the names of this file; those that match no pattern are left out."""

    def pairs() -> Iterator[tuple[str, Tensor]]:
        for name, value in state.items():
            for old, new in names.items():
                if match := re.match(old, name):
                    yield match.expand(new) + name[match.end() :], value

    return dict(pairs())


def tower(checkpoint: Checkpoint, key: str) -> str:
    """Location of a tower: the folder that the LMM's config names, in one of its last part beside the LMM, or on the Hub.

    Args:
        checkpoint: of the LMM.
        key: of its config.
    """
    name = str(checkpoint.config[key])
    own, last = Path(checkpoint.source), Path(name).name
    for folder in (own / name, own.parent / last, Path(name)):
        if folder.is_dir():
            return str(folder)
    if hub := TOWERS.get(last.lower()):
        return hub
    raise LoadError(f"LMM {checkpoint.source}: expected its tower {name} in the folder {own.parent / last}, got none")


def _weights(checkpoint: Checkpoint, prefix: str = "") -> dict[str, Tensor]:
    """All weights of a checkpoint, in one file or several, in one of the two usual formats."""
    for name in (f"{prefix}model.safetensors", f"{prefix}pytorch_model.bin"):
        index = checkpoint.json(f"{name}.index.json")
        parts = sorted(set(index["weight_map"].values())) if index else [name] if checkpoint.file(name) else []
        state: dict[str, Tensor] = {}
        for path in map(checkpoint.require, parts):
            state |= (
                load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
            )
        if state:
            return state
    raise LoadError(f"{checkpoint.source}: expected {prefix}model.safetensors or {prefix}pytorch_model.bin, got neither")
