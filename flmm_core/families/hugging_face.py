"""Base of the families whose model, preprocessing and features are those of transformers, unchanged.

No published heads exist for them. Images are resized with Pillow, as in the training of the models; torchvision's processors
give slightly different pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from flmm_core.families.base import ImageFeatures, LmmFamily, LoadedLmm, PreparedImages, check_complete
from flmm_core.families.checkpoint import Checkpoint
from flmm_core.families.layouts import GridLayout
from flmm_core.families.load_options import LoadOptions
from flmm_core.images.geometry import stretched_geometry


class HuggingFaceFamily(LmmFamily):
    """A model of transformers with its own image processor."""

    model_class: ClassVar[Any]
    """``AutoModelForImageTextToText`` where a family serves several classes."""

    def __init__(self, *, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, image_processor: Any) -> None:
        config: Any = model.config
        self.image_token_id = int(config.image_token_id)
        self.image_token = str(tokenizer.convert_ids_to_tokens(self.image_token_id))
        self.image_processor = image_processor

    @classmethod
    def load(cls, checkpoint: Checkpoint, how: LoadOptions) -> LoadedLmm:
        """Load model, tokenizer and image processor."""
        source = checkpoint.source
        model, report = cls.model_class.from_pretrained(source, **how.given, output_loading_info=True)
        check_complete(report)
        tokenizer = AutoTokenizer.from_pretrained(source)
        image_processor = AutoImageProcessor.from_pretrained(source, backend="pil")
        family = cls(model=model, tokenizer=tokenizer, image_processor=image_processor)
        return LoadedLmm(model=model, tokenizer=tokenizer, family=family)

    def one_grid(self, images: Sequence[Image.Image], pixels: Tensor, side: int) -> PreparedImages:
        """Images that are each stretched to a square, without tiles.

        Args:
            images: RGB.
            pixels: ``[images, 3, height, width]`` as the model takes them.
            side: image tokens along each side of a square.
        """
        frame = (pixels.shape[-2], pixels.shape[-1])
        geometries = (stretched_geometry(image, frame=frame, grid=(side, side)) for image in images)
        layouts = tuple(GridLayout(geometry, self.image_token_id) for geometry in geometries)
        return PreparedImages({"pixel_values": pixels}, layouts)

    def encode(self, model: PreTrainedModel, prepared: PreparedImages) -> ImageFeatures:
        """Vision tower and projector; one view for each image or tile."""
        inputs: dict[str, Tensor] = {
            name: value.to(device=model.device, dtype=model.dtype if value.is_floating_point() else None)
            for name, value in prepared.inputs.items()
        }
        output = model.get_image_features(**inputs, return_dict=True)  # type: ignore[operator]
        views = prepared.inputs["pixel_values"].shape[:-3].numel()
        features = output.pooler_output if isinstance(output.pooler_output, Tensor) else torch.cat(output.pooler_output)
        return ImageFeatures(views=tuple(features.reshape(views, -1, features.shape[-1])), given=output)
