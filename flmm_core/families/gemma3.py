"""Gemma 3: one stretched square for each image, whose tokens attend to each other in both directions.

Five of six layers slide, so only the others give maps. Crops of long images (pan and scan) are left out, as in the
processor unless it is asked for them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor
from transformers import Gemma3ForConditionalGeneration, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from flmm_core.families.base import ImageFeatures, PreparedImages
from flmm_core.families.boxes import JSON_ROWS_FIRST
from flmm_core.families.hugging_face import HuggingFaceFamily


class Gemma3Family(HuggingFaceFamily):
    """Gemma 3 with 4, 12 and 27 billion parameters; the smaller ones have no vision tower."""

    model_type = "gemma3"
    boxes = JSON_ROWS_FIRST
    model_class = Gemma3ForConditionalGeneration
    prompt_marks = ("<start_of_turn>user\n<start_of_image>{text}<end_of_turn>\n<start_of_turn>model\n",)
    answer_separator = ""
    turn_end = "<end_of_turn>\n"

    def __init__(self, *, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, image_processor: Any) -> None:
        super().__init__(model=model, tokenizer=tokenizer, image_processor=image_processor)
        config: Any = model.config
        begin, end = (tokenizer.convert_ids_to_tokens(token) for token in (config.boi_token_id, config.eoi_token_id))
        self.image_mark = f"\n\n{begin}{self.image_token}{end}\n\n"
        self.grid = int(config.mm_tokens_per_image**0.5)

    @classmethod
    def map_layers(cls, text: PreTrainedConfig) -> tuple[int, ...]:
        """Layers of full attention."""
        return tuple(i for i, kind in enumerate(text.layer_types) if kind == "full_attention")

    def prompt(self, text: str, images: int = 1) -> str:
        """The user's text behind the images."""
        return f"<start_of_turn>user\n{self.image_mark * images}{text}<end_of_turn>\n<start_of_turn>model\n"

    def prepare(self, images: Sequence[Image.Image]) -> PreparedImages:
        """Stretch each image to a square."""
        pixels = self.image_processor(list(images), do_pan_and_scan=False, return_tensors="pt")["pixel_values"]
        return self.one_grid(images, pixels, self.grid)

    def model_inputs(self, model: PreTrainedModel, ids: Tensor, features: ImageFeatures) -> dict[str, Any]:
        """Token types: 0 for words, 1 for image tokens, which attend to their whole image."""
        return {**super().model_inputs(model, ids, features), "token_type_ids": (ids == self.image_token_id).long()}
