"""Mistral Small 3.1 and later, and Ministral 3: one grid at the image's own shape, with a token between its rows."""

from __future__ import annotations

import math
from typing import Any

from PIL import Image

from flmm_core.families.processed import ProcessedFamily
from flmm_core.families.view_grid import ViewGrid


class Mistral3Family(ProcessedFamily):
    """Models of a Pixtral tower whose patches are merged."""

    model_type = "mistral3"

    def grid(self, image: Image.Image, tokens: tuple[int, ...], made: Any) -> ViewGrid:
        """One grid of the size that the image is resized to."""
        height, width = made["image_sizes"][0].tolist()
        return ViewGrid(1, 1, height // self._side, width // self._side)

    @property
    def _side(self) -> int:
        """Pixels along each side of a cell."""
        return int(self.processor.patch_size) * int(self.processor.spatial_merge_size)

    def set_most_tokens(self, most: int) -> int:
        """By the longest side that an image is scaled to: of a square, the rows with the token behind each of them."""
        own = self.processor.image_processor
        longest = int(own.size["longest_edge"])
        cells = math.ceil(longest / self._side)
        while cells > 1 and cells * (cells + 1) > most:
            cells -= 1
        own.size = {"longest_edge": min(longest, cells * self._side)}
        return cells * (cells + 1)
