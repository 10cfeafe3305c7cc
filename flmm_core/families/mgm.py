"""Mini-Gemini (MGM): CLIP's patches, enriched from a second tower; MGM-HD: tiles behind the whole image.

Preprocessing is the published heads': the image is padded to a square at its own size, resized once for the detailed
tower, and what CLIP sees is made from that by bilinear interpolation.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    AddedToken,
    AutoImageProcessor,
    AutoTokenizer,
    CLIPVisionConfig,
    GemmaConfig,
    LlamaConfig,
    LlavaConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from flmm_core.families.base import ImageFeatures, LmmFamily, LoadedLmm, ModelOutline, PreparedImages
from flmm_core.families.checkpoint import Checkpoint
from flmm_core.families.layouts import GridLayout, ImageLayout
from flmm_core.families.load_options import LoadOptions
from flmm_core.families.mgm_model import MgmForConditionalGeneration, load_model, tower
from flmm_core.images.geometry import long_side_geometry, place_in_frame
from flmm_core.types import ImageGeometry

_ONLY = {
    "mm_projector_type": "mlp2x_gelu",
    "mm_vision_select_feature": "patch",
    "mm_use_im_start_end": False,
    "optimize_vision_tower": False,
    "optimize_vision_tower_aux": False,
}
"""Values in the configs of the published checkpoints; other values are not supported."""


@dataclass(frozen=True)
class TiledLayout(ImageLayout):
    """The whole image, then its tiles in reading order, each a grid of cells; channels are layer by layer [whole, tiles]."""

    geometry: ImageGeometry
    image_token_id: int
    tiles: int
    """Count of tiles along each side."""

    @property
    def ids(self) -> tuple[int, ...]:
        """One image token for each cell."""
        cells = self.geometry.grid_height * self.geometry.grid_width
        return (self.image_token_id,) * (cells // self.tiles**2 + cells)

    def maps(self, rows: Tensor) -> Tensor:
        """Maps of the joined tiles, and those of the whole image enlarged to the same size."""
        layers, heads, phrases, columns = rows.shape
        if columns != len(self.ids):
            raise ValueError(f"image columns: expected {len(self.ids)}, got {columns}")
        tiles, side = self.tiles, self.geometry.grid_height // self.tiles
        whole = rows[..., : side * side].reshape(layers * heads, phrases, side, side)
        whole = F.interpolate(whole, scale_factor=tiles, mode="bilinear")
        fine = rows[..., side * side :].reshape(layers * heads * phrases, tiles, tiles, side, side).transpose(2, 3)
        size = (layers, heads, phrases, tiles * side, tiles * side)
        return torch.stack([whole.reshape(size), fine.reshape(size)], dim=1).flatten(0, 2).transpose(0, 1)


class MgmFamily(LmmFamily):
    """MGM with a Llama decoder that is prompted like Vicuna: MGM-7B, MGM-13B."""

    quantizes = False
    model_type = "mgm"
    prompt_marks = ("USER:", "ASSISTANT:")
    template = "USER: {image}{text} ASSISTANT:"
    turn_end = "</s>"
    image_token = "<image>"
    text_class: ClassVar[type[PreTrainedConfig]] = LlamaConfig
    architecture: ClassVar[str] = "MGMLlamaForCausalLM"

    def __init__(
        self,
        *,
        model: MgmForConditionalGeneration,
        tokenizer: PreTrainedTokenizerBase,
        image_processor: Any,
        config: dict[str, Any],
    ) -> None:
        vision: Any = model.config.vision_config
        self.view = int(vision.image_size)
        self.cells = self.view // int(vision.patch_size)
        self.tiles = int(config.get("image_grid") or 1)
        self.frame = int(config["image_size_aux"])
        self.image_token_id = int(cast(int, tokenizer.convert_tokens_to_ids(self.image_token)))
        self.mean = tuple(float(x) for x in image_processor.image_mean)
        self.std = tuple(float(x) for x in image_processor.image_std)
        self.resample = int(image_processor.resample)

    @classmethod
    def claims(cls, checkpoint: Checkpoint) -> bool:
        """Claims checkpoints of the kind and with the family's number of maps, which tiles double."""
        tiled = int(checkpoint.config.get("image_grid") or 1) > 1
        return super().claims(checkpoint) and tiled == (cls.maps_per_head == 2)

    @classmethod
    def doubt(cls, checkpoint: Checkpoint) -> str:
        """Refuses other chat templates and decoders, and options that no published checkpoint uses."""
        config = checkpoint.config
        only = _ONLY | {"architectures": [cls.architecture]} | ({"image_global": True} if cls.maps_per_head == 2 else {})
        for key, value in only.items():
            if config.get(key, value) != value:
                return f"expected {key} = {value}, got {config[key]}"
        return super().doubt(checkpoint)

    @classmethod
    def text_config(cls, checkpoint: Checkpoint) -> PreTrainedConfig:
        """The raw config without the entries of MGM."""
        raw = checkpoint.config.items()
        own = ("mm_", "image_", "optimize_", "tokenizer_", "model_type", "architectures")
        return cls.text_class(**{key: value for key, value in raw if value is not None and not key.startswith(own)})

    @classmethod
    def load(cls, checkpoint: Checkpoint, how: LoadOptions) -> LoadedLmm:
        """Load the LMM and its two towers; the tokenizer gets a token for images, which the decoder never reads."""
        text = cls.text_config(checkpoint)
        model = load_model(checkpoint, text, dtype=how.dtype)
        tokenizer = cls._words(checkpoint, text)
        ends = text.eos_token_id if how.generation.eos_token_id is None else how.generation.eos_token_id
        pad = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        model.generation_config = deepcopy(how.generation)
        model.generation_config.update(bos_token_id=text.bos_token_id, eos_token_id=ends, pad_token_id=pad)
        processor = AutoImageProcessor.from_pretrained(tower(checkpoint, "mm_vision_tower"))
        family = cls(model=model, tokenizer=tokenizer, image_processor=processor, config=checkpoint.config)
        return LoadedLmm(model=model, tokenizer=tokenizer, family=family)

    @classmethod
    def unloaded(cls, checkpoint: Checkpoint, weights: Collection[str]) -> LmmFamily:
        """The family without a model; the grid is that of the tower for the whole image."""
        text, clip = cls.text_config(checkpoint), tower(checkpoint, "mm_vision_tower")
        config = LlavaConfig(vision_config=CLIPVisionConfig.from_pretrained(clip), text_config=text)
        return cls(
            model=cast(MgmForConditionalGeneration, ModelOutline(config, weights)),
            tokenizer=cls._words(checkpoint, text),
            image_processor=AutoImageProcessor.from_pretrained(clip),
            config=checkpoint.config,
        )

    @classmethod
    def elsewhere(cls, checkpoint: Checkpoint) -> tuple[str, ...]:
        """The two towers."""
        return tower(checkpoint, "mm_vision_tower"), tower(checkpoint, "mm_vision_tower_aux")

    @classmethod
    def _words(cls, checkpoint: Checkpoint, text: PreTrainedConfig) -> PreTrainedTokenizerBase:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(checkpoint.source, config=text)
        tokenizer.add_tokens([AddedToken(cls.image_token, special=True, normalized=False)], special_tokens=True)
        return tokenizer

    def prompt(self, text: str, images: int = 1) -> str:
        """The user's text in the decoder's chat format."""
        return self.template.format(image=f"{self.image_token}\n" * images, text=text)

    def prepare(self, images: Sequence[Image.Image]) -> PreparedImages:
        """Pad each image to a square and resize it for both towers."""
        layouts = [self._layout(image) for image in images]
        details = [self._pixels(image, layout.geometry) for image, layout in zip(images, layouts, strict=True)]
        inputs = {"pixel_values": torch.stack([self._views(one) for one in details]), "pixel_values_aux": torch.stack(details)}
        return PreparedImages(inputs, tuple(layouts))

    def _layout(self, image: Image.Image) -> ImageLayout:
        width, height = image.size
        grid = self.cells * self.tiles
        geometry = long_side_geometry(
            image_height=height, image_width=width, frame=max(height, width), grid_height=grid, grid_width=grid
        )
        if self.tiles == 1:
            return GridLayout(geometry, self.image_token_id)
        return TiledLayout(geometry, self.image_token_id, self.tiles)

    def _pixels(self, image: Image.Image, geometry: ImageGeometry) -> Tensor:
        """Padded to a square with the mean colour, resized, normalised: ``[3, frame, frame]``."""
        red, green, blue = (int(255 * channel) for channel in self.mean)
        square = place_in_frame(image, geometry, background=(red, green, blue), resample=self.resample)
        frame = Image.fromarray(square).resize((self.frame, self.frame), Image.Resampling(self.resample))
        values = np.asarray(frame).astype(np.float32) / 255.0
        values = (values - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return torch.from_numpy(values).permute(2, 0, 1).contiguous()

    def _views(self, pixels: Tensor) -> Tensor:
        """Input of CLIP, ``[v, 3, view, view]``: the whole image, or its tiles and then the whole image."""
        fine = F.interpolate(pixels[None], (self.view * self.tiles,) * 2, mode="bilinear")
        if self.tiles == 1:
            return fine
        tiles = fine[0].unflatten(2, (self.tiles, -1)).unflatten(1, (self.tiles, -1)).permute(1, 3, 0, 2, 4).flatten(0, 1)
        return torch.cat([tiles, F.interpolate(fine, (self.view,) * 2, mode="bilinear")])

    def encode(self, model: PreTrainedModel, prepared: PreparedImages) -> ImageFeatures:
        """Towers, mining and projector; the whole image's features come first."""
        views, whole = (prepared.inputs[name].to(model.device, model.dtype) for name in ("pixel_values", "pixel_values_aux"))
        mgm = cast(MgmForConditionalGeneration, model)
        features = torch.cat([mgm.project_image(*one) for one in zip(views, whole, strict=True)])
        return ImageFeatures(views=tuple(features), given=features.flatten(0, 1))

    def model_inputs(self, model: PreTrainedModel, ids: Tensor, features: ImageFeatures) -> dict[str, Any]:
        """Embeddings with the images' features inserted, as the decoder has no token for an image."""
        mark = ids == self.image_token_id
        embeddings = model.get_input_embeddings()(ids.masked_fill(mark, 0))
        return {"inputs_embeds": embeddings.masked_scatter(mark[..., None], features.given)}


class MgmHdFamily(MgmFamily):
    """MGM-HD: tiles behind the whole image, so each head gives two maps."""

    maps_per_head = 2


class MgmGemmaFamily(MgmFamily):
    """MGM-2B. Gemma scales its input, image features included, by the square root of the hidden size."""

    model_type = "mgm_gemma"
    prompt_marks = ("<start_of_turn>user", "<start_of_turn>model")
    template = "<start_of_turn>user\n{image}{text}<end_of_turn>\n<start_of_turn>model\n"
    turn_end = "<end_of_turn>\n"
    answer_separator = ""
    phrase_separator = ""
    text_class = GemmaConfig
    architecture = "MGMGemmaForCausalLM"

    def encode(self, model: PreTrainedModel, prepared: PreparedImages) -> ImageFeatures:
        """Features, scaled here because transformers scales the embeddings of words only."""
        features = super().encode(model, prepared)
        scale = torch.tensor(model.config.get_text_config().hidden_size ** 0.5, dtype=model.dtype)
        return ImageFeatures(features.views, features.given * scale.to(model.device))
