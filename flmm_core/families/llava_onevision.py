"""LLaVA-OneVision (``LlavaOnevisionForConditionalGeneration``): as LLaVA-NeXT, but many tiles are shrunk to fewer cells.

No heads were published, so preprocessing is transformers' own, image by image, un-padding included. The cells are treated as
exactly the image, as with LLaVA-NeXT.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaOnevisionForConditionalGeneration, PreTrainedModel, PreTrainedTokenizerBase

from flmm_core.families.llava_next import AnyresLayout, LlavaNextFamily

_SHRUNK = 1.1
"""Images with sides that many times longer than those of ``most_tiles`` tiles are shrunk (transformers'
``pack_image_features``)."""


class LlavaOnevisionFamily(LlavaNextFamily):
    """LLaVA-OneVision on Qwen2."""

    model_type = "llava_onevision"
    architecture = LlavaOnevisionForConditionalGeneration
    decoder = "qwen2"
    prompt_marks = ("<|im_start|>user", "<|im_start|>assistant\n")
    template = "<|im_start|>user {image}\n{text}<|im_end|><|im_start|>assistant\n"
    answer_separator = ""
    turn_end = "<|im_end|>"

    def __init__(self, *, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, image_processor: Any) -> None:
        super().__init__(model=model, tokenizer=tokenizer, image_processor=image_processor)
        self.most_tiles = int(model.config.vision_aspect_ratio.removeprefix("anyres_max_"))

    def prompt(self, text: str, images: int = 1) -> str:
        """The user's text in Qwen2's chat format, all images before it."""
        return self.template.format(image=self.image_token * images, text=text)

    def _truncated(self, size: float) -> int:
        return int(round(size, 7))

    def _most_tokens(self, height: int, width: int) -> int:
        """Also of an image that is not quite large enough to be shrunk."""
        rows, columns = height // self.frame * self.grid, width // self.frame * self.grid
        cells = min(rows * columns, int(self.most_tiles * self.grid**2 * _SHRUNK**2))
        return self.grid**2 + cells + rows

    def _fine_grid(self, height: int, width: int) -> tuple[int, int]:
        """Reduced if the image covers clearly more cells than ``most_tiles`` tiles have."""
        ratio = math.sqrt(height * width / (self.most_tiles * self.grid**2))
        return (int(height // ratio), int(width // ratio)) if ratio > _SHRUNK else (height, width)

    def _fine(self, tiles: Tensor, layout: AnyresLayout) -> Tensor:
        grid = super()._fine(tiles, layout)
        size = (layout.geometry.grid_height, layout.geometry.grid_width)
        if grid.shape[:2] == size:
            return grid
        return F.interpolate(grid.permute(2, 0, 1)[None], size, mode="bilinear")[0].permute(1, 2, 0)
