"""What the LMM keeps of images: features of the vision tower, and prompt prefixes that end with the images."""

from __future__ import annotations

from dataclasses import dataclass, field

from flmm_core.families import ImageFeatures, ImageLayout
from flmm_core.lmm.prefix_cache import Prefix
from flmm_core.types import ImageGeometry


@dataclass(frozen=True)
class EncodedImage:
    """What depends on the images of a prompt alone (nearly always one image)."""

    layouts: tuple[ImageLayout, ...]
    features: ImageFeatures
    prefixes: dict[tuple[int, ...], Prefix] = field(default_factory=dict)
    """Prompt prefixes up to the last image, by their ids; empty if images are read again for each prompt."""

    @property
    def geometry(self) -> ImageGeometry:
        """Of the first image."""
        return self.layouts[0].geometry

    @property
    def image_tokens(self) -> int:
        """Number of tokens of all images in the sequence."""
        return sum(len(layout.ids) for layout in self.layouts)
