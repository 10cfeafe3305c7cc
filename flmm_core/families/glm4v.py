"""GLM-4.1V: an image keeps its shape; its grid of tokens is the grid of patches divided by the merge."""

from __future__ import annotations

from typing import Any

from PIL import Image

from flmm_core.families.processed import ProcessedFamily
from flmm_core.families.view_grid import ViewGrid


class Glm4vFamily(ProcessedFamily):
    """GLM-4.1V, answering without a thinking phase where its template allows that."""

    model_type = "glm4v"

    def grid(self, image: Image.Image, tokens: tuple[int, ...], made: Any) -> ViewGrid:
        """One grid."""
        _, height, width = made["image_grid_thw"][0].tolist()
        merge = int(self.processor.image_processor.merge_size)
        return ViewGrid(1, 1, height // merge, width // merge)
