"""Rows of word-to-image attention, recomputed from recorded queries and the keys of the key/value cache.

Rows are what the model computed: each is a softmax over all positions that its token may see, with the model's scaling,
masks and soft caps. This file knows attention layers and positions. It knows nothing of images, words or tokenizers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerQueries:
    """Saved queries and keys of a decoder layer: ``k`` key/value heads, ``q`` query heads, ``s`` positions, ``e`` head size."""

    queries: Tensor
    """``[q, t, e]`` of the kept tokens, after rotary embedding."""
    key_parts: tuple[Tensor, ...]
    """``[k, ..., e]`` each; concatenated, they cover all positions up to the last kept token."""
    scaling: float
    layer: int
    """Index of the decoder layer."""
    visible: Tensor | None = None
    """``[t, s]`` bool, which positions each token may see; None if all before it and itself."""
    window: int | None = None
    """How many positions a token of a sliding layer sees, itself included; None for full attention."""
    softcap: float | None = None
    """Bound of the scores, applied by a tanh; None for plain scores."""

    @property
    def keys(self) -> Tensor:
        """``[k, s, e]`` of all positions up to the last kept token; concatenated at each call."""
        return self.key_parts[0] if len(self.key_parts) == 1 else torch.cat(self.key_parts, dim=1)


@dataclass(frozen=True)
class RecordedAttention:
    """Queries of the tokens at positions ``start ... start + t - 1`` and the keys that they saw; of layers that give maps."""

    start: int
    layers: tuple[LayerQueries, ...]

    @property
    def tokens(self) -> int:
        """Number of kept tokens."""
        return self.layers[0].queries.shape[1] if self.layers else 0

    def rows(self, layer: int, tokens: Sequence[int], columns: Tensor) -> Tensor:
        """Attention of one layer, each row a softmax over all that its token may see.

        Args:
            layer: which one, counted among the kept layers.
            tokens: which tokens, counted from the first kept one.
            columns: ``[m]`` int64, which positions of the sequence are wanted.

        Returns:
            ``[q, len(tokens), m]`` in the model's dtype, one row for each *query* head also with grouped keys; on the device
            of ``columns``, whichever the layer is on.
        """
        kept = self.layers[layer]
        index = torch.as_tensor(tokens, device=kept.queries.device)
        queries = kept.queries[:, index]
        heads, count, size = queries.shape
        keys = kept.keys
        key_heads, positions = keys.shape[:2]
        grouped = queries.reshape(key_heads, heads // key_heads * count, size)
        scores = (grouped @ keys.transpose(1, 2) * kept.scaling).reshape(heads, count, positions)
        if kept.softcap is not None:
            scores = (scores / kept.softcap).tanh() * kept.softcap
        if kept.visible is None:
            hidden = torch.arange(positions, device=index.device)[None] > (self.start + index)[:, None]
        else:
            hidden = ~kept.visible[index]
        scores = scores.masked_fill(hidden, float("-inf"))
        rows = scores.softmax(dim=-1, dtype=torch.float32).to(queries.dtype)
        return rows[..., columns.to(rows.device)].to(columns.device)

    def mean_rows(self, spans: Sequence[tuple[int, int]], columns: Tensor) -> Tensor:
        """Attention averaged, in the model's dtype, over the tokens of each span, one layer at a time.

        Args:
            spans: half-open token ranges, counted from the first kept token; none may be empty.
            columns: ``[m]`` int64, which positions of the sequence are wanted.

        Returns:
            ``[l, q, n, m]`` float32, of the kept layers.

        Raises:
            ValueError: if a span is empty or reaches outside the kept tokens.
        """
        for start, end in spans:
            if not 0 <= start < end <= self.tokens:
                raise ValueError(f"token span: expected 0 <= start < end <= {self.tokens}, got ({start}, {end})")
        if not spans:
            return torch.zeros(len(self.layers), self.layers[0].queries.shape[0], 0, len(columns), device=columns.device)
        tokens = sorted({token for start, end in spans for token in range(start, end)})
        place = {token: i for i, token in enumerate(tokens)}
        layers = []
        for layer in range(len(self.layers)):
            rows = self.rows(layer, tokens, columns)
            parts = [rows[:, place[start] : place[end - 1] + 1] for start, end in spans]
            layers.append(torch.stack([part.mean(dim=1) for part in parts], dim=1).float())
        return torch.stack(layers)


def positions_between(parts: tuple[Tensor, ...], first: int, last: int) -> tuple[Tensor, ...]:
    """Of tensors ``[k, ..., e]``, the positions ``[first, last)``."""
    cut = []
    for part in parts:
        cut.append(part[:, max(0, first) : max(0, last)])
        first, last = first - part.shape[1], last - part.shape[1]
    return tuple(cut)
