"""Heads of the published method: the names and sizes in their ``.pth`` files, and the LMMs that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from flmm_core.errors import LoadError
from flmm_core.heads.grounding_heads import HeadsConfig
from flmm_core.heads.unet import UNetConfig, UNetHead
from flmm_core.weights.folders import load_strictly, read_pth, require

_FIRST_CONV = "encoder.0.0.convs.0.conv.weight"
"""Entry of a U-Net whose shape gives its size."""

_PUBLISHED = {
    1024: "LLaVA-1.5-7B, MGM-7B or HPT",
    2048: "LLaVA-NeXT-7B or MGM-HD-7B",
    384: "DeepSeek-VL-1.3B",
    960: "DeepSeek-VL-7B",
    144: "MGM-2B",
}
"""Published LMMs by their count of attention channels."""


def published_lmms(channels: int) -> str:
    """Published LMMs with this count of attention channels, for messages; empty if there is none."""
    return _PUBLISHED.get(channels, "")


def published_config(state: Mapping[str, Tensor], path: Path) -> HeadsConfig:
    """Sizes of published heads, from the shapes of their weights.

    Args:
        state: tensors of a ``.pth`` file.
        path: of the file, for messages.

    Raises:
        LoadError: the file holds no published heads.
    """
    names = (f"mask_head.{_FIRST_CONV}", "text_layer_weights", "text_proj.weight")
    missing = [name for name in names if name not in state]
    if missing:
        raise LoadError(f"heads {path}: expected F-LMM heads with {missing[0]}, got a file with other entries")
    first, weights, projection = (state[name] for name in names)
    return HeadsConfig(
        unet=_unet_config(first),
        layers=weights.shape[0],
        hidden_size=projection.shape[1],
        keyword_selector=False,
        presence=False,
    )


def _unet_config(first: Tensor) -> UNetConfig:
    """Size of a U-Net from the weight of its first convolution."""
    return UNetConfig(in_channels=first.shape[1], base_channels=first.shape[0])


def load_mask_head(source: str | Path) -> UNetHead:
    """Load a U-Net alone, in evaluation mode.

    Args:
        source: a ``.pth`` file with the entries of published heads, their ``mask_head.`` left out.

    Raises:
        LoadError: the file is damaged or of another kind.
    """
    path = Path(source)
    require(path, "mask head")
    state = read_pth(path, "mask head")
    if _FIRST_CONV not in state:
        raise LoadError(f"mask head {path}: expected a U-Net with {_FIRST_CONV}, got a file with other entries")
    head = UNetHead(_unet_config(state[_FIRST_CONV]))
    load_strictly(head, state, what="mask head", source=path)
    return head.eval()
