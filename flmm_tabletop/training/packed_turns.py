"""Attention for many questions about one image in one sequence: each turn attends only to the prompt's prefix and itself.

A sequence is the prefix (with the image) and then groups of turns; the turns of a group are padded to one length. The decoder
runs unchanged: the rule below is an attention implementation, selected through the public interface of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.nn import functional as F
from transformers import AttentionInterface, AttentionMaskInterface

NAME = "flmm_packed_turns"


@dataclass(frozen=True)
class Packing:
    """How a sequence is laid out: ``prefix`` tokens, then for each group ``count`` turns of ``length`` tokens."""

    prefix: int
    groups: tuple[tuple[int, int], ...]

    @property
    def length(self) -> int:
        """Tokens of the whole sequence."""
        return self.prefix + sum(count * length for count, length in self.groups)

    def positions(self, device: torch.device) -> torch.Tensor:
        """``[1, length]``: every turn continues the prefix."""
        turns = [torch.arange(length).repeat(count) + self.prefix for count, length in self.groups]
        return torch.cat([torch.arange(self.prefix), *turns])[None].to(device)


@dataclass(frozen=True)
class WatchedHeads:
    """Records, with gradients, the attention of one head of some layers to the prefix, during one pass of the decoder."""

    heads: Mapping[int, int]
    """Layer to head."""
    seen: dict[int, torch.Tensor] = field(default_factory=dict)
    """Layer to attention ``[b, tokens of the turns, prefix]``; filled by the pass."""


def packed_attention(
    module: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: None,
    *,
    scaling: float,
    packing: Packing,
    watched: WatchedHeads | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Queries, keys and values ``[b, heads, packing.length, head size]`` to ``[b, packing.length, heads, head size]``."""
    prefix = packing.prefix
    key_p, value_p = key[:, :, :prefix], value[:, :, :prefix]
    outputs = [F.scaled_dot_product_attention(query[:, :, :prefix], key_p, value_p, is_causal=True, scale=scaling)]
    start = prefix
    head = None if watched is None else watched.heads.get(module.layer_idx)
    seen = []
    for count, length in packing.groups:
        part = slice(start, start + count * length)
        output, weights = _turns(query[:, :, part] * scaling, key[:, :, part], value[:, :, part], key_p, value_p, count)
        outputs.append(output)
        if head is not None:
            seen.append(weights[:, head, ..., :prefix].flatten(1, 2))
        start = part.stop
    if watched is not None and head is not None:
        watched.seen[module.layer_idx] = torch.cat(seen, 1)
    return torch.cat(outputs, 2).transpose(1, 2), None


def _turns(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, key_p: torch.Tensor, value_p: torch.Tensor, count: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs ``[b, heads, count * length, head size]`` and weights ``[b, heads, count, length, prefix + length]``."""
    prefix, shape = key_p.shape[2], query.shape
    query_t, key_t, value_t = (x.unflatten(2, (count, -1)) for x in (query, key, value))
    length = query_t.shape[3]
    later = torch.ones(length, length, dtype=torch.bool, device=query.device).triu(1)
    own = (query_t @ key_t.transpose(-1, -2)).masked_fill(later, float("-inf"))
    seen = (query @ key_p.transpose(-1, -2)).unflatten(2, (count, length))
    weights = torch.cat([seen, own], -1).softmax(-1)
    from_prefix = (weights[..., :prefix].flatten(2, 3) @ value_p).view(shape)
    return from_prefix + (weights[..., prefix:] @ value_t).view(shape), weights


AttentionInterface.register(NAME, packed_attention)
AttentionMaskInterface.register(NAME, lambda *_, **__: None)
