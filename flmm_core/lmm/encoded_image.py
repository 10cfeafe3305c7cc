"""What the LMM keeps of images: features of the vision tower, and prompt prefixes that end with the images."""

from __future__ import annotations

from dataclasses import dataclass, field

from flmm_core.families import ImageFeatures, ImageLayout
from flmm_core.lmm.prefix_cache import Prefix
from flmm_core.types import ImageGeometry


@dataclass(frozen=True)
class EncodedImage:
    """What depends on the images of a prompt alone (nearly always one): features, and the prompt's beginning with them."""

    layouts: tuple[ImageLayout, ...]
    features: ImageFeatures
    prefixes: dict[tuple[int, ...], Prefix] = field(default_factory=dict)
    """Beginnings of prompts so far, by their ids (chat and reading may differ); none if images are read anew each time."""

    @property
    def geometry(self) -> ImageGeometry:
        """Of the first image."""
        return self.layouts[0].geometry

    @property
    def image_tokens(self) -> int:
        """Columns of the sequence that the images take together."""
        return sum(len(layout.ids) for layout in self.layouts)
