"""HPT: a vision tower, a projector and a Llama decoder, each in a folder of its own, without a config of the whole.

transformers does not know HPT. Its parts are put together as those of LLaVA are: features of one layer of the tower, without
a class token, through an MLP into the decoder. The tower sees larger images than it was trained on, so its position
embeddings are interpolated. Preprocessing is LLaVA's, at that size.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import Any, ClassVar, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)
from transformers.activations import ACT2FN

from flmm_core.families.base import ImageFeatures, LmmFamily, LoadedLmm, ModelOutline, check_complete
from flmm_core.families.checkpoint import Checkpoint
from flmm_core.families.llava import LlavaFamily
from flmm_core.families.load_options import LoadOptions

_IMAGE_TOKEN = "<image>"


class _HptFamily(LlavaFamily):
    """Base of both HPTs."""

    quantizes = False
    model_type = "projector"  # of the only folder that is HPT's own
    reads_apart = True
    tower_type: ClassVar[str]
    decoder_folder = "llm"

    def __init__(self, *, instruction: str, **parts: Any) -> None:
        super().__init__(**parts)
        self.instruction = instruction

    @classmethod
    def claims(cls, checkpoint: Checkpoint) -> bool:
        """Claims checkpoints with folders of a projector and of the right kind of tower, as there is no config of the whole."""
        if checkpoint.json("projector/config.json").get("model_type") != cls.model_type:
            return False
        return checkpoint.json("visual_encoder/config.json").get("model_type") == cls.tower_type

    @classmethod
    def text_config(cls, checkpoint: Checkpoint) -> PreTrainedConfig:
        """Config of the decoder, from its own folder."""
        return AutoConfig.from_pretrained(checkpoint.source, subfolder="llm")

    @classmethod
    def load(cls, checkpoint: Checkpoint, how: LoadOptions) -> LoadedLmm:
        """Load the parts and combine them into one model."""
        settings = {**cls.settings, **checkpoint.settings}
        decoder = _part(AutoModelForCausalLM, checkpoint, "llm", how.dtype, generation_config=how.generation)
        tower = _part(AutoModel, checkpoint, "visual_encoder", how.dtype)
        _enlarge(tower, int(settings["image_size"]))
        tokenizer = _words(checkpoint)
        config = _whole_config(tower.config, decoder.config, tokenizer, settings)
        with torch.device("meta"):  # nothing of it stays
            model = LlavaForConditionalGeneration(config)
        model.model.vision_tower = tower
        model.model.multi_modal_projector = _projector(checkpoint, how.dtype)
        model.model.language_model, model.lm_head = decoder.model, decoder.lm_head
        model.generation_config = decoder.generation_config
        processor = AutoImageProcessor.from_pretrained(checkpoint.source, subfolder="visual_encoder")
        family = cls(model=model, tokenizer=tokenizer, image_processor=processor, instruction=str(settings["instruction"]))
        return LoadedLmm(model=model, tokenizer=tokenizer, family=family)

    @classmethod
    def unloaded(cls, checkpoint: Checkpoint, weights: Collection[str]) -> LmmFamily:
        """The family without a model."""
        settings, tokenizer = {**cls.settings, **checkpoint.settings}, _words(checkpoint)
        tower: Any = AutoConfig.from_pretrained(checkpoint.source, subfolder="visual_encoder")
        tower.image_size = int(settings["image_size"])
        config = _whole_config(tower, cls.text_config(checkpoint), tokenizer, settings)
        return cls(
            model=ModelOutline(config, weights),
            tokenizer=tokenizer,
            image_processor=AutoImageProcessor.from_pretrained(checkpoint.source, subfolder="visual_encoder"),
            instruction=str(settings["instruction"]),
        )

    def prompt(self, text: str, images: int = 1) -> str:
        """The user's text in the chat format that the published heads were trained with."""
        return self.instruction.replace("{input}", f"{self.image_token}\n" * images + text)

    def model_inputs(self, model: PreTrainedModel, ids: Tensor, features: ImageFeatures) -> dict[str, Any]:
        """Embeddings with the image's features, as the decoder has no embedding of the image token."""
        images = ids == self.image_token_id
        embeds = model.get_input_embeddings()(ids.masked_fill(images, 0))
        return {"inputs_embeds": embeds.masked_scatter(images[..., None], torch.cat(features.views).to(embeds))}


class HptAirFamily(_HptFamily):
    """HPT-Air: CLIP."""

    tower_type = "clip_vision_model"
    turn_end = "<|im_end|>\n"
    settings: ClassVar[Mapping[str, Any]] = {
        "image_size": 392,
        "visual_select_layer": -2,
        "instruction": "<|im_start|>user\n{input}<|im_end|>\n<|im_start|>assistant\n",
    }


class HptAir15Family(_HptFamily):
    """HPT-Air-1.5: SigLIP."""

    tower_type = "siglip_vision_model"
    turn_end = "<|eot_id|>"
    settings: ClassVar[Mapping[str, Any]] = {
        "image_size": 448,
        "visual_select_layer": -2,
        "instruction": (
            "<|start_header_id|>user<|end_header_id|>\n\n{input}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        ),
    }


def _part(kind: Any, checkpoint: Checkpoint, folder: str, dtype: torch.dtype, **options: Any) -> Any:
    model, report = kind.from_pretrained(checkpoint.source, subfolder=folder, dtype=dtype, output_loading_info=True, **options)
    check_complete(report)
    return model


def _words(checkpoint: Checkpoint) -> PreTrainedTokenizerBase:
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(checkpoint.source, subfolder="llm")
    tokenizer.add_tokens([_IMAGE_TOKEN], special_tokens=True)
    return tokenizer


def _whole_config(
    tower: PreTrainedConfig, text: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, settings: Mapping[str, Any]
) -> LlavaConfig:
    """Config of the whole; of the towers only CLIP has a class token."""
    return LlavaConfig(
        vision_config=tower,
        text_config=text,
        image_token_index=cast(int, tokenizer.convert_tokens_to_ids(_IMAGE_TOKEN)),
        vision_feature_layer=int(settings["visual_select_layer"]),
        vision_feature_select_strategy="default" if tower.model_type == HptAirFamily.tower_type else "full",
    )


def _projector(checkpoint: Checkpoint, dtype: torch.dtype) -> nn.Sequential:
    """An MLP of ``depth`` linear layers with activations between them."""
    config = checkpoint.json("projector/config.json")
    sizes = [config["visual_hidden_size"], *[config["llm_hidden_size"]] * config["depth"]]
    layers: list[nn.Module] = []
    for inner, outer in pairwise(sizes):
        layers += [ACT2FN[config["hidden_act"]], nn.Linear(inner, outer, bias=config["bias"])]
    projector = nn.Sequential(*layers[1:])
    state = load_file(checkpoint.require("projector/model.safetensors"))
    projector.load_state_dict({name.removeprefix("model."): value for name, value in state.items()})
    return projector.to(dtype)


def _enlarge(tower: Any, image_size: int) -> None:
    """Interpolate the position embeddings of a tower for images of ``image_size`` pixels.

    They are rounded through float16, a class token's too, as they were when the published heads were trained.
    """
    embeddings: Any = tower.embeddings
    side, wanted = math.isqrt(embeddings.num_patches), image_size // embeddings.patch_size
    if side == wanted:
        return
    table = embeddings.position_embedding.weight.detach().float()
    before = len(table) - side * side
    cells = table[before:].T.reshape(1, -1, side, side)
    grown = F.interpolate(cells, size=(wanted, wanted), mode="bicubic", align_corners=False)
    table = torch.cat([table[:before], grown[0].flatten(1).T]).half().to(tower.dtype)
    embeddings.position_embedding = nn.Embedding.from_pretrained(table)
    embeddings.num_patches, embeddings.num_positions = wanted * wanted, len(table)
    embeddings.position_ids = torch.arange(len(table))[None]
    embeddings.image_size = tower.config.image_size = image_size
