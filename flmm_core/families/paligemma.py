"""PaliGemma 2 (and 1): one stretched square for each image, then the user's words, all with bidirectional attention.

So the images' keys depend on the words, and every prompt is read from its beginning. The prompt ends with a line break; what is
behind it is the answer, and sees what is before it only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PaliGemmaForConditionalGeneration, PreTrainedModel, PreTrainedTokenizerBase

from flmm_core.families.base import ImageFeatures, PreparedImages
from flmm_core.families.boxes import LOCATION_TOKENS
from flmm_core.families.hugging_face import HuggingFaceFamily


class PaliGemmaFamily(HuggingFaceFamily):
    """PaliGemma with either decoder: Gemma, or Gemma 2, with soft-capped scores and a sliding window in every second layer.

    All layers give maps: a window of 4096 holds the image, or at 896 pixels nearly all of it.
    """

    model_type = "paligemma"
    boxes = LOCATION_TOKENS
    model_class = PaliGemmaForConditionalGeneration
    answer_separator = ""
    reuses_prefix = False

    def __init__(self, *, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, image_processor: Any) -> None:
        super().__init__(model=model, tokenizer=tokenizer, image_processor=image_processor)
        tokens: Any = tokenizer
        tokens.add_bos_token = tokens.add_eos_token = False  # the beginning stands behind the images
        self.start = str(tokenizer.bos_token)
        (self.line_break,) = tokenizer("\n", add_special_tokens=False).input_ids
        config: Any = model.config
        self.grid = int(config.vision_config.image_size) // int(config.vision_config.patch_size)

    def prompt(self, text: str, images: int = 1) -> str:
        """The user's text as one line, since a line break ends it."""
        return f"{self.image_token * images}{self.start}{' '.join(text.splitlines())}\n"

    def prepare(self, images: Sequence[Image.Image]) -> PreparedImages:
        """Stretch each image to a square."""
        pixels = self.image_processor(list(images), return_tensors="pt")["pixel_values"]
        return self.one_grid(images, pixels, self.grid)

    def model_inputs(self, model: PreTrainedModel, ids: Tensor, features: ImageFeatures) -> dict[str, Any]:
        """Token types: 0 for the prompt, which attends in both directions, 1 for the answer behind its line break."""
        if self.line_break not in ids:
            raise ValueError(f"prompt: expected a line break at its end (token {self.line_break}), got none")
        end = int((ids[0] == self.line_break).nonzero()[0]) + 1
        types = (torch.arange(ids.shape[1], device=ids.device) >= end).long()[None]
        return {**super().model_inputs(model, ids, features), "token_type_ids": types}
