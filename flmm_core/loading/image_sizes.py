"""What an image of a given size costs an LMM: tokens, maps, memory; and the limit that keeps large images near small ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from PIL import Image
from transformers import PreTrainedConfig

from flmm_core.config import GroundingConfig
from flmm_core.families import LmmFamily, LmmShape

Size = tuple[int, int]
"""Width and height of an image, pixels."""

VGA, FULL_HD, TWELVE_MEGAPIXELS = (640, 480), (1920, 1080), (4032, 3024)

_RATIO = 1.5
"""How many times VGA's tokens full HD may take, within the limit of :class:`LargeImages`."""
_BYTES = 2
"""Of a number of the LMM in bfloat16."""


@dataclass(frozen=True)
class ImageCost:
    """What one image takes; memory in bytes, that of the LMM in bfloat16."""

    width: int
    height: int
    tokens: int
    """Columns of the sequence, those between the cells included."""
    grid_width: int
    """Cells of the maps."""
    grid_height: int
    layout: str
    """Kind of the layout."""
    keys_values: int
    """Keys and values of the image's columns in all layers that keep them."""
    queries: int
    """Saved queries of an answer of :attr:`~flmm_core.config.GroundingConfig.max_new_tokens` tokens."""
    maps: int
    """Maps of one phrase in all channels, float32, before the U-Net resizes them."""


def image_cost(family: LmmFamily, text: PreTrainedConfig, size: Size) -> ImageCost:
    """What an image takes in an LMM.

    Args:
        family: of the LMM; it needs no model.
        text: config of the decoder.
        size: of the image.
    """
    layout = family.prepare([Image.new("RGB", size)]).layouts[0]
    frame, shape, tokens = layout.geometry, family.shape(text), len(layout.ids)
    sizes = _layer_sizes(text, shape)
    return ImageCost(
        width=size[0],
        height=size[1],
        tokens=tokens,
        grid_width=frame.grid_width,
        grid_height=frame.grid_height,
        layout=type(layout).__name__,
        keys_values=2 * sum(heads * size for heads, size in map(sizes.__getitem__, _layers_with_keys(text))) * _BYTES * tokens,
        queries=sum(shape.heads * sizes[i][1] for i in family.map_layers(text)) * _BYTES * GroundingConfig.max_new_tokens,
        maps=shape.channels * frame.grid_width * frame.grid_height * 4,
    )


def _layer_sizes(text: PreTrainedConfig, shape: LmmShape) -> list[tuple[int, int]]:
    """Key/value heads and head size of each decoder layer; layers of full attention may have others than those with windows."""
    config: Any = text
    own = getattr(config, "per_layer_config", None) or [config] * shape.layers
    return [
        (
            getattr(own[i], "num_key_value_heads", None) or shape.heads,
            getattr(own[i], "head_dim", None) or shape.hidden_size // shape.heads,
        )
        for i in range(shape.layers)
    ]


def _layers_with_keys(text: PreTrainedConfig) -> list[int]:
    """Decoder layers with keys and values of every position; those of linear attention or convolutions have none."""
    config: Any = text
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * int(config.num_hidden_layers)
    keeping = [i for i, kind in enumerate(kinds) if kind.endswith("attention") and kind != "linear_attention"]
    return keeping[: len(keeping) - int(getattr(config, "num_kv_shared_layers", None) or 0)]


@dataclass(frozen=True)
class LargeImages:
    """Tokens of full HD beside those of VGA."""

    small: int
    """Of VGA, without a limit."""
    large: int
    """Of full HD, without a limit."""
    most: int | None
    """The ``image_tokens`` with which full HD takes at most 1.5 times VGA's tokens; None if it does so without a limit."""
    limited: int
    """Of full HD with that limit; more than it if the family has nothing to limit."""

    def __str__(self) -> str:
        names = ["x".join(map(str, size)) for size in (VGA, FULL_HD)]
        taken = f"{names[1]} takes {self.large} tokens, {names[0]} {self.small}"
        if self.most is None:
            return f"no limit is needed: {taken}"
        if self.limited > self.most:
            return f"this family has no limit: {taken}"
        return f"{taken}; {self.most} keeps {names[1]} at {self.limited}"


def large_images(make: Callable[[int], LmmFamily]) -> LargeImages:
    """Compare full HD with VGA.

    Args:
        make: makes the family anew, with a limit of an image's tokens; 0 for none.
    """
    own = make(0)
    small, large = _tokens(own, VGA), _tokens(own, FULL_HD)
    most = int(_RATIO * small)
    if large <= most:
        return LargeImages(small, large, None, large)
    return LargeImages(small, large, most, _tokens(make(most), FULL_HD))


def _tokens(family: LmmFamily, size: Size) -> int:
    return len(family.prepare([Image.new("RGB", size)]).layouts[0].ids)
