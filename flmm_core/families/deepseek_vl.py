"""DeepSeek-VL with one vision tower (1.3B), in its published layout or in transformers'.

Preprocessing is the published heads': sizes truncate with ``int()``, where transformers' processor rounds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    DeepseekVLForConditionalGeneration,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from flmm_core.families import deepseek_vl_layout as published
from flmm_core.families.base import ImageFeatures, LmmFamily, LoadedLmm, ModelOutline, PreparedImages, check_complete
from flmm_core.families.checkpoint import Checkpoint
from flmm_core.families.layouts import GridLayout
from flmm_core.families.load_options import LoadOptions
from flmm_core.images.geometry import long_side_geometry, place_in_frame

_SMALLEST_SIDE = 14
"""Default of ``min_size`` in the published processors."""


@dataclass(frozen=True)
class Pixels:
    """Constants of the preprocessing."""

    background: tuple[int, int, int]
    """RGB 0..255 around an image."""
    norms: Mapping[str, published.Norm]
    """Mean and standard deviation of RGB 0..1, for each of the model's inputs by name."""
    smallest: int = _SMALLEST_SIDE
    """Least height and width of an image in the frame, pixels."""


class DeepseekVlFamily(LmmFamily):
    """DeepSeek-VL-1.3B, and models of its architecture."""

    quantizes = False
    model_type = "deepseek_vl"
    prompt_marks = ("User: ", "Assistant:")
    answer_separator = ""
    phrase_separator = ""
    system = (
        "You are a helpful language and vision assistant. You are able to understand the visual content that the user"
        " provides, and assist the user with a variety of tasks using natural language.\n\n"
    )
    template = "User: {image}{text}\n\nAssistant:"
    turn_end = "<｜end▁of▁sentence｜>"
    settings: ClassVar[Mapping[str, Any]] = {"siglip_entry": published.SIGLIP_TOWERS}
    model_class: ClassVar[Any] = DeepseekVLForConditionalGeneration
    tower: ClassVar[str] = "CLIPVisionTower"
    """Class of the vision tower in the published layout."""
    frame_prefix: ClassVar[str] = ""
    """Prefix of the attributes of transformers' processor that concern the frame."""

    def __init__(self, *, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pixels: Pixels) -> None:
        config: Any = model.config
        self.frame = int(self.frame_config(config).image_size)
        self.grid = int(config.vision_config.image_size) // int(config.vision_config.patch_size)
        self.image_token_id = int(config.image_token_id)
        self.image_token = str(tokenizer.convert_ids_to_tokens(self.image_token_id))
        self.pixels = pixels

    @classmethod
    def claims(cls, checkpoint: Checkpoint) -> bool:
        """Claims checkpoints by transformers' name, or by the class of the tower in the published layout."""
        if checkpoint.config.get("model_type") == published.MODEL_TYPE:
            return cls.tower in checkpoint.config["vision_config"]["cls"]
        return super().claims(checkpoint)

    @classmethod
    def doubt(cls, checkpoint: Checkpoint) -> str:
        """Refuses Janus, which has the published layout's kind, but another prompt."""
        if "gen_vision_config" in checkpoint.config:
            return "expected DeepSeek-VL, got a model that draws images too (gen_vision_config), such as Janus"
        return super().doubt(checkpoint)

    @classmethod
    def text_config(cls, checkpoint: Checkpoint) -> PreTrainedConfig:
        """Config of the decoder, in either layout."""
        if checkpoint.config.get("model_type") == published.MODEL_TYPE:
            return published.text_config(checkpoint)
        return super().text_config(checkpoint)

    @classmethod
    def load(cls, checkpoint: Checkpoint, how: LoadOptions) -> LoadedLmm:
        """Load model and tokenizer; answers end with the tokenizer's end token, not with the config's default."""
        config, tokenizer, pixels = cls._small_files(checkpoint)
        given: str | None = checkpoint.source
        options: dict[str, Any] = {}
        if checkpoint.config["model_type"] == published.MODEL_TYPE:
            given, options = None, {"config": config, "state_dict": published.weights(checkpoint)}
        model, report = cls.model_class.from_pretrained(given, **how.given, output_loading_info=True, **options)
        check_complete(report)
        if given is None and report["unexpected_keys"]:
            raise ValueError(
                f"expected no other weights than the model's, got {', '.join(sorted(report['unexpected_keys'])[:3])}"
            )
        model.generation_config.update(
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
        )
        return LoadedLmm(model=model, tokenizer=tokenizer, family=cls(model=model, tokenizer=tokenizer, pixels=pixels))

    @classmethod
    def unloaded(cls, checkpoint: Checkpoint, weights: Collection[str]) -> LmmFamily:
        """The family without a model, in either layout."""
        config, tokenizer, pixels = cls._small_files(checkpoint)
        return cls(model=cast(PreTrainedModel, ModelOutline(config, weights)), tokenizer=tokenizer, pixels=pixels)

    @classmethod
    def _small_files(cls, checkpoint: Checkpoint) -> tuple[Any, PreTrainedTokenizerBase, Pixels]:
        """Config, tokenizer and preprocessing, in either layout."""
        source = checkpoint.source
        tokenizer = PreTrainedTokenizerFast.from_pretrained(source)
        if checkpoint.config["model_type"] == published.MODEL_TYPE:
            smallest = int(checkpoint.json("preprocessor_config.json").get("min_size", _SMALLEST_SIDE))
            pixels = Pixels(published.background(checkpoint), published.norms(checkpoint), smallest)
            return published.model_config(checkpoint, tokenizer), tokenizer, pixels
        pixels = cls._processor_pixels(AutoImageProcessor.from_pretrained(source))
        return AutoConfig.from_pretrained(source), tokenizer, pixels

    @classmethod
    def frame_config(cls, config: Any) -> Any:
        """Config of the tower that sees the whole frame."""
        return config.vision_config

    @classmethod
    def _processor_pixels(cls, processor: Any) -> Pixels:
        prefixes = {"", cls.frame_prefix}
        norms = {
            f"{prefix}pixel_values": (getattr(processor, f"{prefix}image_mean"), getattr(processor, f"{prefix}image_std"))
            for prefix in prefixes
        }
        smallest = int(getattr(processor, "min_size", None) or _SMALLEST_SIDE)
        return Pixels(getattr(processor, f"{cls.frame_prefix}background_color"), norms, smallest)

    def prompt(self, text: str, images: int = 1) -> str:
        """The user's text in DeepSeek-VL's chat format."""
        return self.template.format(image=self.image_token * images, text=text)

    def prepare(self, images: Sequence[Image.Image]) -> PreparedImages:
        """Place each image in a frame: long side to the frame, centred on the mean colour, normalised."""
        layouts, frames = [], []
        for image in images:
            width, height = image.size
            geometry = long_side_geometry(
                image_height=height,
                image_width=width,
                frame=self.frame,
                grid_height=self.grid,
                grid_width=self.grid,
                smallest=self.pixels.smallest,
            )
            layouts.append(GridLayout(geometry, self.image_token_id))
            placed = place_in_frame(image, geometry, background=self.pixels.background, resample=Image.Resampling.BICUBIC)
            frames.append(torch.from_numpy(placed.copy()).permute(2, 0, 1))
        inputs = {}
        for name, values in self.views(torch.stack(frames) / 255).items():
            mean, std = (torch.tensor(numbers)[:, None, None] for numbers in self.pixels.norms[name])
            inputs[name] = (values - mean) / std
        return PreparedImages(inputs, tuple(layouts))

    def views(self, frames: Tensor) -> dict[str, Tensor]:
        """Inputs of each tower by the model's names, from frames ``[n, 3, s, s]`` of RGB 0..1."""
        return {"pixel_values": frames}

    def encode(self, model: PreTrainedModel, prepared: PreparedImages) -> ImageFeatures:
        """Run the vision towers and the aligner."""
        inputs = {name: values.to(device=model.device, dtype=model.dtype) for name, values in prepared.inputs.items()}
        output = model.base_model.get_image_features(**inputs, return_dict=True)  # type: ignore[operator]
        return ImageFeatures(views=tuple(output.pooler_output), given=output)
