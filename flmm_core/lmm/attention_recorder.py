"""Records what word-to-image attention needs while scaled-dot-product attention (SDPA) runs.

The recorder is an attention function registered with transformers under its own name. It delegates to transformers' SDPA, so
the model's output is bitwise the same; soft-capped scores, which SDPA lacks, go to the model's own eager attention. It saves
the queries (after rotary embedding) of the tokens from a given position on, and a reference to the keys, which the key/value
cache holds anyway. Attention is recomputed from them afterwards, layer by layer, for the wanted tokens only: no attention
matrix of the whole sequence ever exists, and nothing is added to the decoding loop.

The rows are exactly those of the model: masks (windows, padding) are saved with the queries, soft caps are applied, unused
positions of static caches are cut off, and a layer whose cache has dropped positions is refused.

This file knows attention layers and positions. It knows nothing of images, words or tokenizers.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from flmm_core.lmm.attention_rows import LayerQueries, RecordedAttention, positions_between

ATTENTION_NAME = "flmm_recorder"
"""Name of the attention implementation, as in ``config._attn_implementation``."""


@dataclass
class _LayerRecord:
    """The passes of one layer so far, of ``b`` sequences."""

    queries: list[Tensor]
    """``[b, q, rows, e]`` of each pass."""
    visible: list[Tensor | None]
    """``[b, rows, positions then]`` of each pass; ``[1, ...]`` if alike for all sequences."""
    keys: tuple[Tensor, ...]
    """``[b, k, ..., e]`` each."""
    seen: int
    """Positions that the layer has processed, those that were in the cache at the start included."""
    scaling: float
    window: int | None
    softcap: float | None


@dataclass
class AttentionRecorder:
    """Collects queries during forward passes of the same sequences; :meth:`split` turns them into :class:`RecordedAttention`.

    :func:`record` makes it.
    """

    start: int
    seen: int
    layers: Collection[int] | None
    records: dict[int, _LayerRecord] = field(default_factory=dict)
    _layer: int = -1
    """The last layer that ran."""
    _rows: int = 0
    """Positions of the current pass: its first layer has queries of all of them."""
    _pass: int = -1
    """Positions before the pass that :attr:`_masks` are of."""
    _masks: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Masks of that pass, by identity, and what is kept of them."""

    def add(self, layer: int, query: Tensor, key: Tensor, mask: Tensor | None, options: dict[str, Any]) -> None:
        """Keep the rows at or after ``start``.

        Args:
            layer: index of the decoder layer.
            query: ``[b, q, rows, e]``, of the pass's last positions where a layer that shares keys computes no others.
            key: ``[b, k, s, e]``, of all positions; of a static cache, with unused positions behind them.
            mask: ``[b, 1, rows, s]`` bool, or None where nothing but the future is hidden.
            options: ``scaling``, ``sliding_window``, ``softcap`` and ``s_aux`` of the attention function, where given.
        """
        if layer <= self._layer or self._layer < 0:
            self._rows = query.shape[2]
        self._layer = layer
        if self.layers is not None and layer not in self.layers:
            return
        rows = query.shape[2]
        before = self.records[layer].seen if layer in self.records else self.seen
        seen = before + self._rows
        window = options.get("sliding_window")
        _check_gives_maps(layer, key, mask, seen, options)
        wanted = self._rows - min(self._rows, max(0, self.start - before))
        if wanted > rows:
            raise ValueError(f"attention recorder, layer {layer}: expected queries of {wanted} positions, got {rows}")
        skip = rows - wanted
        # A clone, so that a view of the last rows does not keep the memory of a long prompt.
        kept = query[:, :, skip:].clone() if skip else query
        visible = None if mask is None else self._visible_of(mask, before, slice(skip, None), seen)
        record = self.records.get(layer)
        if record is None:
            scaling = options.get("scaling")
            scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
            record = _LayerRecord([], [], (key,), seen, scaling, window, options.get("softcap"))
            self.records[layer] = record
        record.queries.append(kept)
        record.visible.append(visible)
        record.keys, record.seen = (key[:, :, :seen],), seen

    def _visible_of(self, mask: Tensor, before: int, rows: slice, seen: int) -> Tensor:
        """A copy of the wanted part of a mask; layers that are given the same mask in a pass share it."""
        if self._pass != before:
            self._pass = before
            self._masks.clear()
        if id(mask) not in self._masks:
            self._masks[id(mask)] = (mask, mask[:, 0, rows, :seen].clone())
        return self._masks[id(mask)][1]

    def take(self) -> Tensor:
        """Flat queries of the last pass (of one token), of all layers in order; the pass is removed."""
        taken = []
        for _, record in sorted(self.records.items()):
            taken.append(record.queries.pop().flatten())
            record.visible.pop()
            record.seen -= 1
        self._masks.clear()
        return torch.cat(taken)

    def put(self, queries: Tensor, keys: Sequence[tuple[Tensor, ...]]) -> None:
        """Add queries of passes of one token each, from :meth:`take`.

        Args:
            queries: ``[t, ...]``, each as taken.
            keys: of every decoder layer, parts ``[1, k, ..., e]`` that cover all positions together.
        """
        records = sorted(self.records.items())
        shapes = [record.queries[0].shape for _, record in records]
        parts = queries.split([heads * size for _, heads, _, size in shapes], dim=1)
        for (layer, record), (_, heads, _, size), part in zip(records, shapes, parts, strict=True):
            record.queries.append(part.reshape(1, -1, heads, size).transpose(1, 2))
            record.visible.append(None)
            record.seen += len(queries)
            record.keys = keys[layer]

    def split(self, ranges: Sequence[tuple[int, int]], paddings: Sequence[int] | None = None) -> tuple[RecordedAttention, ...]:
        """What was recorded of each sequence of a batch.

        Args:
            ranges: half-open ranges of columns to keep, one for each sequence; their ends leave out padding at the right.
            paddings: columns of padding at the left of each sequence, from behind which positions are counted; None for none.
        """
        paddings = [0] * len(ranges) if paddings is None else paddings
        wanted = self.records if self.layers is None else self.layers
        silent = sorted(set(wanted) - set(self.records))
        if silent:
            raise ValueError(
                f"attention recorder: expected softmax attention in layers {sorted(wanted)}, got none from {silent};"
                " layers with linear attention give no maps"
            )
        layers: list[list[LayerQueries]] = []
        for layer, record in sorted(self.records.items()):
            queries, visible = torch.cat(record.queries, dim=2), self._visible(record)
            if self.start + queries.shape[2] != record.seen:
                raise ValueError(
                    f"attention recorder, layer {layer}: expected queries of positions {self.start} to {record.seen}, got"
                    f" {queries.shape[2]}: passes must begin where the cache ends"
                )
            if len(queries) != len(ranges):
                raise ValueError(f"attention recorder: expected {len(ranges)} sequences, got a batch of {len(queries)}")
            layers.append([])
            for i, ((first, last), begin) in enumerate(zip(ranges, paddings, strict=True)):
                rows = slice(first - self.start, last - self.start)
                layers[-1].append(
                    LayerQueries(
                        queries=queries[i, :, rows],
                        key_parts=positions_between(tuple(keys[i] for keys in record.keys), begin, last),
                        scaling=record.scaling,
                        layer=layer,
                        visible=None if visible is None else visible[i % len(visible), rows, begin:last],
                        window=record.window,
                        softcap=record.softcap,
                    )
                )
        starts = [first - begin for (first, _), begin in zip(ranges, paddings, strict=True)]
        return tuple(
            RecordedAttention(start, tuple(kept)) for start, kept in zip(starts, zip(*layers, strict=True), strict=True)
        )

    def _visible(self, record: _LayerRecord) -> Tensor | None:
        """Masks ``[b, t, s]`` of all passes, concatenated along ``t``, as wide as the last; None if there was none."""
        masks = [mask for mask in record.visible if mask is not None]
        if not masks:
            return None
        device = record.keys[0].device
        position, parts = self.start, []
        columns = torch.arange(record.seen, device=device)
        for queries, mask in zip(record.queries, record.visible, strict=True):
            rows = torch.arange(position, position + queries.shape[2], device=device)
            part = (columns[None] <= rows[:, None]).repeat(max(map(len, masks)), 1, 1)
            if mask is not None:
                part = torch.zeros_like(part)
                part[:, :, : mask.shape[2]] = mask
            parts.append(part)
            position += queries.shape[2]
        return torch.cat(parts, dim=1)


def _check_gives_maps(layer: int, key: Tensor, mask: Tensor | None, seen: int, options: dict[str, Any]) -> None:
    """Refuse attention whose rows cannot be recomputed from queries and keys; arguments as of :meth:`AttentionRecorder.add`."""
    window = options.get("sliding_window")
    if options.get("s_aux") is not None:
        raise ValueError(f"attention recorder, layer {layer}: expected rows that the keys share, got attention sinks (s_aux)")
    if key.shape[2] < seen:
        kind = f"a sliding window of {window}" if window else "a cache that drops positions"
        raise ValueError(
            f"attention recorder, layer {layer}: expected keys of {seen} positions, got {key.shape[2]}; a layer with {kind}"
            " gives no maps"
        )
    if mask is None and window is not None and seen > window:
        raise ValueError(f"attention recorder, layer {layer}: expected a mask for its sliding window of {window}, got none")
    if mask is not None and (mask.dtype != torch.bool or mask.shape[1] != 1):
        raise ValueError(f"attention recorder: expected a bool mask for all heads, got {mask.dtype} {list(mask.shape)}")


_RECORDER: ContextVar[AttentionRecorder | None] = ContextVar("flmm_attention_recorder", default=None)


def _recorded_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    recorder = _RECORDER.get()
    if recorder is not None:
        recorder.add(int(module.layer_idx), query, key, attention_mask, options)  # type: ignore[arg-type]
    if options.get("softcap") is not None:
        return _own_attention(module, query, key, value, attention_mask, options)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **options)


def _own_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """The eager attention of the model's own module: SDPA does not support soft-capped scores."""
    if mask is None:
        rows, positions = query.shape[2], key.shape[2]
        mask = torch.ones(1, 1, rows, positions, dtype=torch.bool, device=query.device).tril(positions - rows)
    lowest = torch.finfo(query.dtype).min
    added = torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, lowest)
    eager = sys.modules[type(module).__module__].eager_attention_forward
    return eager(module, query, key, value, added, **options)


AttentionInterface.register(ATTENTION_NAME, _recorded_attention)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)


def install(model: PreTrainedModel) -> None:
    """Let the text model of ``model`` run through the recorder; the vision tower keeps its own attention."""
    _set_attention(model, ATTENTION_NAME)
    used = model.config.get_text_config()._attn_implementation
    if used != ATTENTION_NAME:
        raise ValueError(f"attention of the text model: expected {ATTENTION_NAME!r}, got {used!r}")


@contextmanager
def uninstalled(model: PreTrainedModel) -> Iterator[None]:
    """Inside, the text model runs through transformers' SDPA, as it was loaded."""
    _set_attention(model, "sdpa")
    try:
        yield
    finally:
        install(model)


def _set_attention(model: PreTrainedModel, name: str) -> None:
    text = model.config.get_text_config()
    names = [part for part in model.config.sub_configs if getattr(model.config, part, None) is text]
    model.set_attn_implementation({names[0]: name} if names else name)


@contextmanager
def record(start: int, *, seen: int = 0, layers: Collection[int] | None = None) -> Iterator[AttentionRecorder]:
    """Keep the queries of the tokens from position ``start`` on, in every recorded forward pass inside the block.

    The passes must be of the same sequences, in order, with a key/value cache that keeps all positions.

    Args:
        start: first position that is kept.
        seen: positions that are in the cache at the start.
        layers: decoder layers that give maps; None for all.

    Raises:
        ValueError: (inside the block or from ``split``) a layer cannot give maps: positions are missing from its cache, or
            it has no softmax attention.
    """
    recorder = AttentionRecorder(start=start, seen=seen, layers=layers)
    token = _RECORDER.set(recorder)
    try:
        yield recorder
    finally:
        _RECORDER.reset(token)
