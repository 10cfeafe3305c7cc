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

    def set_most_tokens(self, most: int) -> int:
        """By the processor's most pixels, which count an image as the frames of one patch in time."""
        own = self.processor.image_processor
        unit = (int(own.patch_size) * int(own.merge_size)) ** 2 * int(own.temporal_patch_size)
        longest = min(int(own.size["longest_edge"]), most * unit)
        own.size = {"shortest_edge": min(int(own.size["shortest_edge"]), longest // 4), "longest_edge": longest}
        return longest // unit
