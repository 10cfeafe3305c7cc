"""LLaVA (``LlavaForConditionalGeneration``): one square frame, one image token for each patch.

Preprocessing is the published heads': the long side is resized to the frame and the image is centred on the mean
colour. Nothing is cropped, unlike in the processor that LLaVA checkpoints come with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, cast

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

from flmm_core.families.base import ImageFeatures, LmmFamily, LoadedLmm, PreparedImages, check_complete
from flmm_core.families.checkpoint import Checkpoint
from flmm_core.families.layouts import GridLayout
from flmm_core.families.load_options import LoadOptions
from flmm_core.images.geometry import long_side_geometry, place_in_frame
from flmm_core.types import ImageGeometry


class LlavaFamily(LmmFamily):
    """LLaVA-1.5, and models of its architecture that are prompted like it, whatever their vision tower and decoder."""

    model_type = "llava"
    architecture: ClassVar[Any] = LlavaForConditionalGeneration
    prompt_marks = ("USER:", "ASSISTANT:")
    template = "USER: {image}{text} ASSISTANT:"
    turn_end = "</s>"

    def __init__(self, *, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, image_processor: Any) -> None:
        config = cast(LlavaConfig, model.config)
        vision: Any = config.vision_config
        self.frame = int(vision.image_size)
        self.grid = self.frame // int(vision.patch_size)
        whole = config.vision_feature_select_strategy == "full"
        self.skipped = int(whole and any(name.endswith("class_embedding") for name, _ in model.named_parameters()))
        self.image_token_id = int(config.image_token_id)
        self.image_token = str(tokenizer.convert_ids_to_tokens(self.image_token_id))
        self.mean = tuple(float(x) for x in image_processor.image_mean)
        self.std = tuple(float(x) for x in image_processor.image_std)
        self.resample = int(image_processor.resample)

    @classmethod
    def load(cls, checkpoint: Checkpoint, how: LoadOptions) -> LoadedLmm:
        """Load model, tokenizer and the numbers of the image processor."""
        source = checkpoint.source
        loaded: Any = cls.architecture.from_pretrained(source, **how.given, output_loading_info=True)
        model, report = loaded
        check_complete(report)
        tokenizer = AutoTokenizer.from_pretrained(source)
        family = cls(model=model, tokenizer=tokenizer, image_processor=AutoImageProcessor.from_pretrained(source))
        return LoadedLmm(model=model, tokenizer=tokenizer, family=family)

    def prompt(self, text: str, images: int = 1) -> str:
        """The user's text in LLaVA's chat format."""
        return self.template.format(image=f"{self.image_token}\n" * images, text=text)

    def prepare(self, images: Sequence[Image.Image]) -> PreparedImages:
        """Place each image in a frame, centred, and normalise it."""
        layouts = tuple(GridLayout(self._geometry(image), self.image_token_id, self.skipped) for image in images)
        pixels = [self._pixels(image, layout) for image, layout in zip(images, layouts, strict=True)]
        return PreparedImages({"pixel_values": torch.stack(pixels)}, layouts)

    def _geometry(self, image: Image.Image) -> ImageGeometry:
        width, height = image.size
        return long_side_geometry(
            image_height=height, image_width=width, frame=self.frame, grid_height=self.grid, grid_width=self.grid
        )

    def _pixels(self, image: Image.Image, layout: GridLayout) -> Tensor:
        """Long side to the frame, centred on the mean colour, normalised: ``[3, frame, frame]``."""
        red, green, blue = (int(255 * channel) for channel in self.mean)
        return self._normalised(place_in_frame(image, layout.geometry, background=(red, green, blue), resample=self.resample))

    def _normalised(self, pixels: np.ndarray) -> Tensor:
        """RGB 0..255 ``[h, w, 3]`` as the vision tower takes it: ``[3, h, w]``."""
        values = pixels.astype(np.float32) / 255.0
        values = (values - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
        return torch.from_numpy(values).permute(2, 0, 1).contiguous()

    def encode(self, model: PreTrainedModel, prepared: PreparedImages) -> ImageFeatures:
        """Vision tower and projector."""
        config: Any = model.config
        output = cast(LlavaForConditionalGeneration, model).get_image_features(
            pixel_values=prepared.inputs["pixel_values"].to(device=model.device, dtype=model.dtype),
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
            return_dict=True,
        )
        return ImageFeatures(views=tuple(output.pooler_output), given=output)
