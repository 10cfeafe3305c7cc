"""InternVL3 and 3.5 in the layout of transformers (checkpoints named ``-hf`` or ``-HF``): tiles, then a thumbnail.

The image is stretched to the tiles' common size, whose shape is the nearest to its own; nothing is padded or cropped.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image
from transformers import InternVLForConditionalGeneration, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from flmm_core.families.base import PreparedImages
from flmm_core.families.boxes import THOUSANDTHS
from flmm_core.families.checkpoint import Checkpoint
from flmm_core.families.hugging_face import HuggingFaceFamily
from flmm_core.families.tiles import TiledLayout
from flmm_core.images.geometry import stretched_geometry


class InternVLFamily(HuggingFaceFamily):
    """InternVL with any decoder whose attention is a plain softmax: Qwen2, Qwen3, Llama."""

    model_type = "internvl"
    boxes = THOUSANDTHS
    model_class = InternVLForConditionalGeneration
    prompt_marks = ("<|im_start|>user\n", "\n{text}<|im_end|>\n<|im_start|>assistant\n")  # older templates write <image>
    answer_separator = ""
    turn_end = "<|im_end|>\n"
    maps_per_head = 2

    def __init__(self, *, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, image_processor: Any) -> None:
        super().__init__(model=model, tokenizer=tokenizer, image_processor=image_processor)
        words: Any = tokenizer
        self.image_mark = f"{words.start_image_token}{self.image_token}{words.end_image_token}\n"
        config: Any = model.config
        (height, width), (own_height, own_width) = config.vision_config.image_size, config.vision_config.patch_size
        ratio = config.downsample_ratio
        self.grid = (int(height // own_height * ratio), int(width // own_width * ratio))

    @classmethod
    def claims(cls, checkpoint: Checkpoint) -> bool:
        """Also claims the authors' own layout, so that the refusal can name the layout that is needed."""
        return super().claims(checkpoint) or checkpoint.config.get("model_type") == "internvl_chat"

    @classmethod
    def doubt(cls, checkpoint: Checkpoint) -> str:
        """Refuses layouts and decoders that are not supported."""
        if not super().claims(checkpoint):
            return "expected the layout of transformers (its name ends in -hf or -HF), got that of InternVL's own code"
        if checkpoint.config.get("text_config", {}).get("model_type") == "gpt_oss":
            return "expected a decoder with plain softmax attention, got gpt_oss, whose attention has sinks"
        return super().doubt(checkpoint)

    def prompt(self, text: str, images: int = 1) -> str:
        """The user's text in ChatML, behind the images."""
        return f"<|im_start|>user\n{self.image_mark * images}{text}<|im_end|>\n<|im_start|>assistant\n"

    def prepare(self, images: Sequence[Image.Image]) -> PreparedImages:
        """Tiles and thumbnails of all images, one image after the other."""
        pixels = self.image_processor(list(images), crop_to_patches=True, return_tensors="pt")["pixel_values"]
        return PreparedImages({"pixel_values": pixels}, tuple(self._layout(image) for image in images))

    def set_most_tokens(self, most: int) -> int:
        """By the number of tiles; several have a thumbnail beside them."""
        own, cells = self.image_processor, self.grid[0] * self.grid[1]
        own.max_patches = max(own.min_patches, min(own.max_patches, most // cells - 1))
        return cells * (own.max_patches + (own.max_patches > 1))

    def _layout(self, image: Image.Image) -> TiledLayout:
        own = self.image_processor
        tile = (int(own.size["height"]), int(own.size["width"]))
        columns, rows = get_optimal_tiled_canvas((image.height, image.width), tile, own.min_patches, own.max_patches)
        frame, grid = (rows * tile[0], columns * tile[1]), (rows * self.grid[0], columns * self.grid[1])
        views = rows * columns + (rows * columns > 1)
        tokens = (self.image_token_id,) * (views * self.grid[0] * self.grid[1])
        geometry = stretched_geometry(image, frame=frame, grid=grid)
        return TiledLayout(geometry, tokens, self.image_token_id, rows, columns)
