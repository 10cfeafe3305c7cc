"""Weighted sums of the decoder layers' hidden states, computed while the model runs; only the sums are kept.

Text prompt, keyword selector and presence score read such sums. Forward hooks accumulate them for the tokens from a given
position on; the states of a long prompt are not stored.

This file knows decoder layers and positions. It knows nothing of images, words or heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

_PASSES = 16
"""Passes of one row each that are mixed in one call: call by call, the overhead would cost more than the sums."""


_NORMS = ("norm", "embedding_norm")
"""Names of a decoder's final norm; the second is LFM2's."""


class StateMixer:
    """Collects mixtures during forward passes of the same sequences, ``b`` of them.

    Args:
        start: first position that is kept.
        seen: positions that are in the cache at the start.
        layer_weights: ``[k, l]`` float32, weight of each layer in each mixture; on the device where mixtures are wanted.
    """

    def __init__(self, *, start: int, seen: int, layer_weights: Tensor) -> None:
        self._start = start
        self._seen = seen
        self.layer_weights = layer_weights
        self._states: list[Tensor] = []
        """Kept rows of the layers of the current pass."""
        self._rows = 0
        """Positions of the current pass: its first layer has states of all of them."""
        self._waiting: list[Tensor] = []
        """Rows of the layers of passes of one row each, waiting to be mixed in one call."""
        self._passes: list[Tensor] = []

    def add(self, layer: int, states: Tensor) -> None:
        """Add the states of one layer, ``[b, rows, d]``; the layers of a pass come in order.

        A layer that computes the pass's last positions only has fewer rows than the first one.
        """
        last = layer == self.layer_weights.shape[1] - 1
        if layer == 0:
            self._rows = states.shape[1]
        rows, wanted = states.shape[1], self._rows - max(0, self._start - self._seen)
        if last:
            self._seen += self._rows
        if wanted <= 0:
            return
        if wanted > rows:
            raise ValueError(f"hidden states, layer {layer}: expected the pass's last {wanted} positions, got {rows}")
        skip = rows - wanted
        # A clone of a part, so that a view of its last rows does not keep a long prompt alive.
        kept = states[:, skip:].clone() if skip else states
        self._states.append(kept.to(self.layer_weights.device))
        if not last:
            return
        if wanted > 1:
            self._mix()
            self._passes.append(torch.einsum("kl,lbtd->bktd", self.layer_weights, torch.stack(self._states).float()))
        else:
            self._waiting += self._states
            if len(self._waiting) >= _PASSES * len(self._states):
                self._mix()
        self._states.clear()

    def _mix(self) -> None:
        """Mix the waiting rows."""
        if self._waiting:
            layers = torch.cat(self._waiting, dim=1).float().unflatten(1, (-1, self.layer_weights.shape[1]))
            self._passes.append(torch.einsum("kl,btld->bktd", self.layer_weights, layers))
            self._waiting.clear()

    def take(self) -> Tensor:
        """Mixtures ``[b, k, 1, d]`` of the last pass (of one row), which is removed."""
        self._mix()
        states = self._passes.pop()
        self._seen -= states.shape[2]
        return states

    def put(self, states: Tensor) -> None:
        """Add mixtures ``[b, k, rows, d]`` from :meth:`take`."""
        self._mix()
        self._passes.append(states)
        self._seen += states.shape[2]

    def split(self, ranges: Sequence[tuple[int, int]]) -> tuple[Tensor, ...]:
        """Mixtures ``[k, t, d]`` float32 of each sequence, of half-open ranges of positions; empty if none were kept."""
        self._mix()
        if not self._passes:
            return tuple(self.layer_weights.new_zeros(len(self.layer_weights), 0, 0) for _ in ranges)
        states = torch.cat(self._passes, dim=2)
        return tuple(
            own[:, first - self._start : last - self._start] for own, (first, last) in zip(states, ranges, strict=True)
        )


@contextmanager
def mixing(model: PreTrainedModel, *, start: int, seen: int, layer_weights: Tensor) -> Iterator[StateMixer]:
    """Mix the hidden states of the tokens from position ``start`` on, in every forward pass inside the block.

    A layer's state is its output; that of the last layer is taken after the final norm, as in transformers.

    Args:
        model: has a decoder of ``layers`` and a final norm of one of the names :data:`_NORMS`.
        start: first position that is kept.
        seen: positions that are in the cache at the start.
        layer_weights: ``[k, l]`` float32 on the model's device.
    """
    decoder: Any = model.get_decoder()
    norm = next((getattr(decoder, name) for name in _NORMS if hasattr(decoder, name)), None)
    if norm is None:
        raise ValueError(
            f"decoder: expected a final norm named {' or '.join(_NORMS)}, got {type(decoder).__name__} without one"
        )
    parts: list[nn.Module] = [*decoder.layers[:-1], norm]
    if layer_weights.ndim != 2 or layer_weights.shape[1] != len(parts):
        raise ValueError(f"layer weights: expected [k, {len(parts)}], got {list(layer_weights.shape)}")
    mixer = StateMixer(start=start, seen=seen, layer_weights=layer_weights)
    hooks = [part.register_forward_hook(partial(_add, mixer, layer)) for layer, part in enumerate(parts)]
    try:
        yield mixer
    finally:
        for hook in hooks:
            hook.remove()


def _add(mixer: StateMixer, layer: int, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
    mixer.add(layer, output[0] if isinstance(output, tuple) else output)
