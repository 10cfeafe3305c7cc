"""What the LMM keeps of images: features, and keys and values of the prompts' beginnings with them."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from flmm_core.families import ImageFeatures, ImageLayout
from flmm_core.types import ImageGeometry


@dataclass(frozen=True)
class Prefix:
    """A prompt up to its last image's end, read once."""

    ids: tuple[int, ...]
    cache: DynamicCache
    """What each layer keeps of it; only ever read, through :func:`fork_cache`."""
    state: Any
    """What the model itself kept, for :meth:`~flmm_core.families.LmmFamily.restore_state`."""


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


def can_be_cut(cache: DynamicCache) -> bool:
    """Whether the cache of a sequence holds that of its beginnings: all layers keep keys and values of all positions."""
    return all(type(layer) is DynamicLayer for layer in cache.layers)


def crop_cache(cache: DynamicCache, length: int) -> DynamicCache:
    """A cache of the first ``length`` positions, in the same memory."""
    own = copy(cache)
    own.layers = []
    for layer in cache.layers:
        cut = copy(layer)
        assert isinstance(cut, DynamicLayer) and cut.keys is not None and cut.values is not None
        cut.keys, cut.values = cut.keys[..., :length, :], cut.values[..., :length, :]
        own.layers.append(cut)
    return own


def fork_cache(cache: DynamicCache) -> DynamicCache:
    """A cache to go on from, that leaves the given one alone.

    Keys and values are shared: a growing layer concatenates into new tensors. Linear layers write into their states, which
    they keep in dictionaries, so these are copied.
    """
    own = copy(cache)
    own.layers = []
    for layer in cache.layers:
        grown = copy(layer)
        for name, kept in vars(layer).items():
            if isinstance(kept, dict):
                states = {key: state.clone() if isinstance(state, Tensor) else state for key, state in kept.items()}
                setattr(grown, name, states)
        own.layers.append(grown)
    return own


def stack_left_padded(caches: Sequence[DynamicCache]) -> DynamicCache:
    """One cache of several sequences, as long as the longest; the shorter ones are padded at their left with zeros.

    Args:
        caches: of one sequence each, of which :func:`can_be_cut` holds.
    """
    longest = max(cache.get_seq_length() for cache in caches)
    own = copy(caches[0])
    own.layers = []
    for layers in zip(*(cache.layers for cache in caches), strict=True):
        joined = copy(layers[0])
        assert isinstance(joined, DynamicLayer)
        joined.keys = torch.cat([_padded(layer.keys, longest) for layer in layers])
        joined.values = torch.cat([_padded(layer.values, longest) for layer in layers])
        own.layers.append(joined)
    return own


def _padded(states: Tensor | None, length: int) -> Tensor:
    """Of ``[1, k, s, e]``, ``[1, k, length, e]``."""
    assert states is not None
    return F.pad(states, (0, 0, length - states.shape[-2], 0))
