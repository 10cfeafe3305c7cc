"""LLaVA (``LlavaForConditionalGeneration``): one square frame, one image token for each patch.

Preprocessing is the published heads': the long side is resized to the frame and the image is centred on the mean
colour. Nothing is cropped, unlike in the processor that LLaVA checkpoints come with.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from flmm_core.families.base import LmmFamily, LoadedLmm, PreparedImage, check_complete
from flmm_core.image_geometry import long_side_geometry, place_in_frame
from flmm_core.types import ImageGeometry


class LlavaFamily(LmmFamily):
    """LLaVA-1.5, and every model of its architecture whatever its vision tower and decoder."""

    model_type = "llava"
    template = "USER: {image}\n{text} ASSISTANT:"

    def __init__(self, *, config: LlavaConfig, tokenizer: PreTrainedTokenizerBase, image_processor: Any) -> None:
        vision: Any = config.vision_config
        self.frame = int(vision.image_size)
        self.grid = self.frame // int(vision.patch_size)
        self.image_token_id = int(config.image_token_id)
        self.image_token = str(tokenizer.convert_ids_to_tokens(self.image_token_id))
        self.mean = tuple(float(x) for x in image_processor.image_mean)
        self.std = tuple(float(x) for x in image_processor.image_std)
        self.resample = int(image_processor.resample)

    @classmethod
    def load(cls, source: str, *, dtype: torch.dtype) -> LoadedLmm:
        """Load model, tokenizer and the numbers of the image processor."""
        loaded: Any = LlavaForConditionalGeneration.from_pretrained(source, dtype=dtype, output_loading_info=True)
        model, report = loaded
        check_complete(report)
        tokenizer = AutoTokenizer.from_pretrained(source)
        processor = AutoImageProcessor.from_pretrained(source)
        family = cls(config=model.config, tokenizer=tokenizer, image_processor=processor)
        return LoadedLmm(model=model, tokenizer=tokenizer, family=family)

    def prompt(self, text: str) -> str:
        """The user's text in LLaVA's chat format."""
        return self.template.format(image=self.image_token, text=text)

    def prepare(self, image: Image.Image) -> PreparedImage:
        """Long side to the frame, centred on the mean colour, normalised."""
        width, height = image.size
        geometry = long_side_geometry(
            image_height=height,
            image_width=width,
            frame=self.frame,
            grid_height=self.grid,
            grid_width=self.grid,
        )
        red, green, blue = (int(255 * channel) for channel in self.mean)
        frame = place_in_frame(image, geometry, background=(red, green, blue), resample=self.resample)
        values = frame.astype(np.float32) / 255.0
        values = (values - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return PreparedImage(pixel_values=torch.from_numpy(values).permute(2, 0, 1)[None].contiguous(), geometry=geometry)

    def encode(self, model: PreTrainedModel, prepared: PreparedImage) -> Any:
        """Vision tower and projector."""
        pixels = prepared.pixel_values.to(device=model.device, dtype=model.dtype)
        config: Any = model.config
        return cast(LlavaForConditionalGeneration, model).get_image_features(
            pixel_values=pixels,
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            return_dict=True,
        )

    def image_tokens(self, features: Any) -> int:
        """One for each projected feature."""
        return sum(int(image.shape[0]) for image in features.pooler_output)

    def arrange_maps(self, rows: Tensor, geometry: ImageGeometry) -> Tensor:
        """Patches in reading order; a class token before them is left out."""
        layers, heads, phrases, tokens = rows.shape
        cells = geometry.grid_height * geometry.grid_width
        if tokens not in (cells, cells + 1):
            raise ValueError(f"image tokens: expected {cells}, or one more for a class token, got {tokens}")
        maps = rows[..., tokens - cells :].reshape(layers * heads, phrases, geometry.grid_height, geometry.grid_width)
        return maps.transpose(0, 1)
