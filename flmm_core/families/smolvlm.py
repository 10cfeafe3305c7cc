"""SmolVLM, SmolVLM2 and Idefics3: tiles with row and column tokens between them, then the whole image.

The image is stretched a little, so that its sides are whole tiles; nothing is padded or cropped. The row
and column tokens between the tiles are tokenised here as the model's processor does it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from PIL import Image
from transformers import AutoModelForImageTextToText, PreTrainedModel, PreTrainedTokenizerBase

from flmm_core.families.base import PreparedImages
from flmm_core.families.checkpoint import Checkpoint
from flmm_core.families.hugging_face import HuggingFaceFamily
from flmm_core.families.tiles import TiledLayout
from flmm_core.images.geometry import stretched_geometry

AROUND, WHOLE = "<fake_token_around_image>", "<global-img>"


class SmolVlmFamily(HuggingFaceFamily):
    """SmolVLM and Idefics3, which are one architecture with two names."""

    model_type = "smolvlm"
    model_class = AutoModelForImageTextToText
    prompt_marks = ("User:<image>{text}<end_of_utterance>\nAssistant:",)
    maps_per_head = 2
    turn_end = "<end_of_utterance>\n"

    def __init__(self, *, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, image_processor: Any) -> None:
        super().__init__(model=model, tokenizer=tokenizer, image_processor=image_processor)
        config: Any = model.config
        self.tokenizer = tokenizer
        self.start = "" if tokenizer("").input_ids else str(tokenizer.bos_token)
        self.tile = int(image_processor.max_image_size["longest_edge"])
        self.grid = self.tile // int(config.vision_config.patch_size) // int(config.scale_factor)

    @classmethod
    def claims(cls, checkpoint: Checkpoint) -> bool:
        """Claims checkpoints of both names."""
        return checkpoint.config.get("model_type") in (cls.model_type, "idefics3")

    def prompt(self, text: str, images: int = 1) -> str:
        """The user's text behind the images, with the beginning-of-sequence token if the tokenizer does not add it."""
        return f"{self.start}User:{self.image_token * images}{text}<end_of_utterance>\nAssistant:"

    def later_prompt(self, text: str) -> str:
        """The user's text without beginning-of-sequence token and image; a turn of text alone starts with a space."""
        return f"User: {text}<end_of_utterance>\nAssistant:"

    def prepare(self, images: Sequence[Image.Image]) -> PreparedImages:
        """Tiles and whole images of all images, one image after the other."""
        made = self.image_processor([list(images)], return_row_col_info=True, return_tensors="pt")
        inputs = {name: made[name] for name in ("pixel_values", "pixel_attention_mask") if name in made}
        splits = zip(images, made["rows"][0], made["cols"][0], strict=True)
        return PreparedImages(inputs, tuple(self._layout(image, int(rows), int(columns)) for image, rows, columns in splits))

    def set_most_tokens(self, most: int) -> int:
        """By the longest side that an image is scaled to, in whole tiles; one tile is the whole image alone."""
        own, square = self.image_processor, Image.new("RGB", (self.tile, self.tile))
        if not own.do_image_splitting:
            return len(self._layout(square, 0, 0).ids)
        longest = int(own.size["longest_edge"])
        side = math.ceil(longest / self.tile)
        while (tokens := len(self._layout(square, *[side if side > 1 else 0] * 2).ids)) > most and side > 1:
            side -= 1
        own.size = {"longest_edge": min(longest, side * self.tile)}
        return tokens

    def _layout(self, image: Image.Image, rows: int, columns: int) -> TiledLayout:
        """Layout of an image; 0 rows and columns for one that is not split."""
        cells = self.image_token * self.grid**2
        text = "".join(
            "".join(f"{AROUND}<row_{row + 1}_col_{column + 1}>{cells}" for column in range(columns)) + "\n"
            for row in range(rows)
        )
        text += f"{chr(10) if rows else ''}{AROUND}{WHOLE}{cells}{AROUND}"
        rows, columns = max(rows, 1), max(columns, 1)
        frame, grid = (rows * self.tile, columns * self.tile), (rows * self.grid, columns * self.grid)
        geometry = stretched_geometry(image, frame=frame, grid=grid)
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        return TiledLayout(geometry, tuple(ids), self.image_token_id, rows, columns)
