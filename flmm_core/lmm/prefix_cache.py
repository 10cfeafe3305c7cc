"""Key/value caches of prompt prefixes: cut, forked for another sequence, and stacked for a batch."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


@dataclass(frozen=True)
class Prefix:
    """A prompt up to the end of its last image, with what the model computed of it."""

    ids: tuple[int, ...]
    cache: DynamicCache
    """Keys and values of each layer; only read, through :func:`fork_cache`."""
    state: Any
    """State of the model itself, for :meth:`~flmm_core.families.LmmFamily.restore_state`."""


def can_be_cropped(cache: DynamicCache) -> bool:
    """Whether the cache of a sequence can be cropped to a prefix: all layers keep keys and values of all positions."""
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
    """A cache to continue from, without changing the given one.

    Keys and values are shared: a growing layer concatenates into new tensors. Linear layers write into their states in place,
    so these (dictionaries of tensors) are copied.
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
    """One batched cache of several sequences; shorter ones are padded with zeros at their left.

    Args:
        caches: of one sequence each, for which :func:`can_be_cropped` holds.
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
    """``[1, k, s, e]`` padded to ``[1, k, length, e]``."""
    assert states is not None
    return F.pad(states, (0, 0, length - states.shape[-2], 0))
