"""Records what word-to-image attention needs while scaled-dot-product attention (SDPA) runs.

The tap is an attention function registered with transformers under its own name. It delegates to transformers' SDPA,
so the model's output is the same to the bit, and keeps aside the queries (after rotary embedding) of the tokens from a
given position on and a reference to the keys, which the key/value cache holds anyway. Attention is computed from them
later, layer by layer, for the wanted tokens only: no attention matrix of the whole sequence ever exists, and nothing is
added to the decoding loop.

This file knows attention layers and positions. It knows nothing of images, words or tokenizers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

TAP_NAME = "flmm_query_tap"
"""Name of the attention implementation, as in ``config._attn_implementation``."""

Merge = Literal["mean", "max"]


@dataclass(frozen=True)
class LayerQueries:
    """What one decoder layer leaves behind: ``k`` key/value heads, ``q`` query heads, ``s`` positions, ``e`` head size."""

    queries: Tensor
    """``[q, t, e]`` of the kept tokens, after rotary embedding."""
    keys: Tensor
    """``[k, s, e]`` of all positions up to the last kept token."""
    scaling: float


@dataclass(frozen=True)
class KeptQueries:
    """Queries of the tokens at positions ``start ... start + t - 1`` and the keys that they saw."""

    start: int
    layers: tuple[LayerQueries, ...]

    @property
    def tokens(self) -> int:
        """Number of kept tokens."""
        return self.layers[0].queries.shape[1] if self.layers else 0

    def rows(self, layer: int, tokens: Sequence[int], columns: Tensor) -> Tensor:
        """Attention of one layer, each row a softmax over all that its token may see.

        Args:
            layer: index of the decoder layer.
            tokens: which tokens, counted from the first kept one.
            columns: ``[m]`` int64, which positions of the sequence are wanted.

        Returns:
            ``[q, len(tokens), m]`` in the model's dtype, one row for each *query* head also with grouped keys.
        """
        kept = self.layers[layer]
        index = torch.as_tensor(tokens, device=kept.queries.device)
        queries = kept.queries[:, index]
        heads, count, size = queries.shape
        key_heads, positions = kept.keys.shape[:2]
        grouped = queries.reshape(key_heads, heads // key_heads * count, size)
        scores = (grouped @ kept.keys.transpose(1, 2) * kept.scaling).reshape(heads, count, positions)
        future = torch.arange(positions, device=index.device)[None] > (self.start + index)[:, None]
        scores = scores.masked_fill(future, float("-inf"))
        return scores.softmax(dim=-1, dtype=torch.float32).to(queries.dtype)[..., columns]

    def merged_rows(self, spans: Sequence[tuple[int, int]], columns: Tensor, *, merge: Merge = "mean") -> Tensor:
        """Attention merged over the tokens of each span, one layer at a time.

        Args:
            spans: half-open token ranges, counted from the first kept token; none may be empty.
            columns: ``[m]`` int64, which positions of the sequence are wanted.
            merge: ``mean`` or ``max`` over the tokens, computed in the model's dtype.

        Returns:
            ``[l, q, n, m]`` float32.

        Raises:
            ValueError: if a span is empty or reaches outside the kept tokens.
        """
        for start, end in spans:
            if not 0 <= start < end <= self.tokens:
                raise ValueError(f"token span: expected 0 <= start < end <= {self.tokens}, got ({start}, {end})")
        tokens = sorted({token for start, end in spans for token in range(start, end)})
        place = {token: i for i, token in enumerate(tokens)}
        layers = []
        for layer in range(len(self.layers)):
            rows = self.rows(layer, tokens, columns)
            parts = [rows[:, place[start] : place[end - 1] + 1] for start, end in spans]
            merged = [part.mean(dim=1) if merge == "mean" else part.amax(dim=1) for part in parts]
            layers.append(torch.stack(merged, dim=1).float())
        return torch.stack(layers)


@dataclass
class _Recording:
    """Collects queries during forward passes of one sequence; turned into :class:`KeptQueries` at the end."""

    start: int
    queries: dict[int, list[Tensor]] = field(default_factory=dict)
    keys: dict[int, Tensor] = field(default_factory=dict)
    scaling: dict[int, float] = field(default_factory=dict)

    def add(self, layer: int, query: Tensor, key: Tensor, scaling: float | None) -> None:
        """Keep the rows at or after ``start``. ``query`` ``[1, q, rows, e]``, ``key`` ``[1, k, s, e]``."""
        if query.shape[0] != 1:
            raise ValueError(f"attention tap: expected one sequence, got a batch of {query.shape[0]}")
        rows, positions = query.shape[2], key.shape[2]
        skip = min(rows, max(0, self.start - (positions - rows)))
        # A clone of a part, so that a view of its last rows does not keep a long prompt alive.
        kept = query[0, :, skip:].clone() if skip else query[0]
        self.queries.setdefault(layer, []).append(kept)
        self.keys[layer] = key[0]
        self.scaling[layer] = query.shape[-1] ** -0.5 if scaling is None else scaling

    def finish(self) -> KeptQueries:
        layers = []
        for layer in sorted(self.keys):
            key = self.keys[layer]
            queries = torch.cat(self.queries[layer], dim=1)
            if self.start + queries.shape[1] != key.shape[1]:
                raise ValueError(
                    f"attention tap, layer {layer}: expected keys of {self.start + queries.shape[1]} positions, got "
                    f"{key.shape[1]}; layers with a sliding window or linear attention give no maps"
                )
            layers.append(LayerQueries(queries=queries, keys=key, scaling=self.scaling[layer]))
        return KeptQueries(start=self.start, layers=tuple(layers))


_RECORDING: ContextVar[_Recording | None] = ContextVar("flmm_recording", default=None)


def _tapped_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    recording = _RECORDING.get()
    if recording is not None:
        recording.add(int(module.layer_idx), query, key, scaling)  # type: ignore[arg-type]
    return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)


AttentionInterface.register(TAP_NAME, _tapped_attention)
AttentionMaskInterface.register(TAP_NAME, sdpa_mask)


def install(model: PreTrainedModel) -> None:
    """Let the text part of ``model`` run through the tap; the vision part keeps what it has."""
    model.set_attn_implementation({"text_config": TAP_NAME})
    used = model.config.get_text_config()._attn_implementation
    if used != TAP_NAME:
        raise ValueError(f"attention of the text model: expected {TAP_NAME!r}, got {used!r}")


class Tap:
    """Handle of a finished or running recording."""

    def __init__(self, recording: _Recording) -> None:
        self._recording = recording

    def finish(self) -> KeptQueries:
        """What was recorded so far."""
        return self._recording.finish()


@contextmanager
def record(start: int) -> Iterator[Tap]:
    """Keep the queries of the tokens from position ``start`` on, in every tapped forward pass inside the block.

    The passes must belong to one sequence, in order, with a key/value cache that keeps all positions.
    """
    recording = _Recording(start=start)
    token = _RECORDING.set(recording)
    try:
        yield Tap(recording)
    finally:
        _RECORDING.reset(token)
