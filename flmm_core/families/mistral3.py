"""Mistral Small 3.1 and later, and Ministral 3: one grid at the image's own shape, with a token between its rows."""

from __future__ import annotations

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
        side = int(self.processor.patch_size) * int(self.processor.spatial_merge_size)
        return ViewGrid(1, 1, height // side, width // side)
