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
    """A prompt up to its last image's end, read once."""

    ids: tuple[int, ...]
    cache: DynamicCache
    """What each layer keeps of it; only ever read, through :func:`fork_cache`."""
    state: Any
    """What the model itself kept, for :meth:`~flmm_core.families.LmmFamily.restore_state`."""


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
