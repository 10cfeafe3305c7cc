"""Decoding with CUDA graphs: static shapes, one captured graph for each token instead of about a thousand kernel launches.

The prompt is read by an ordinary pass. Then keys and values are copied into static caches, and each further token is one step
that writes into them: the same forward pass with the same recorder and mixer, captured once and replayed. What a step records
(queries, mixed states) is copied after each replay.

A step attends to the whole static cache under a mask, so SDPA may choose another kernel than for keys of the exact length: the
results are the same but for rounding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin, StaticLayer

from flmm_core.common.devices import is_spread
from flmm_core.lmm.attention_recorder import AttentionRecorder
from flmm_core.lmm.hidden_states import StateMixer
from flmm_core.lmm.prefix_cache import can_be_cropped

_MULTIPLE = 512
"""Static caches hold a multiple of this many positions, so that one serves many prompts."""

_log = logging.getLogger(__name__)


class _StaticLayer(StaticLayer):
    """Keys and values of one layer in a static cache: one position is written in place, at an index that lies on the device.

    Args:
        keys: ``[1, k, s, e]`` of the prompt.
        values: ``[1, k, s, e]``.
        positions: of the static cache.
        index: ``[1]`` int64 position to write, shared by all layers.
    """

    def __init__(self, keys: Tensor, values: Tensor, positions: int, index: Tensor) -> None:
        super().__init__(positions)
        self.keys, self.values = (one.new_zeros(*one.shape[:2], positions, one.shape[3]) for one in (keys, values))
        self.cumulative_length = index
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write one position; the owner of the index increments it."""
        assert self.keys is not None and self.values is not None
        self.keys.index_copy_(2, self.cumulative_length, key_states)
        self.values.index_copy_(2, self.cumulative_length, value_states)
        return self.keys, self.values


def allows_static_decoding(model: PreTrainedModel) -> bool:
    """Whether the model is on one device and every layer of the decoder has full attention: no windows, no linear attention."""
    return not is_spread(model) and can_be_cropped(DynamicCache(config=model.config.get_text_config()))


class StaticDecoder:
    """Runs the decoding steps of one model, one command at a time.

    Args:
        model: with the recorder installed, of which :func:`allows_static_decoding` holds.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._step: _Step | None = None
        self._usable = True

    def forget(self) -> None:
        """Free the static caches and the graph."""
        self._step = None

    @contextmanager
    def decoding(
        self, cache: DynamicCache, recorder: AttentionRecorder, mixer: StateMixer, *, positions: int
    ) -> Iterator[None]:
        """Run the model's passes inside the block, all but the first, as static steps of one token each.

        Args:
            cache: filled by the first pass; not changed after it.
            recorder: has all rows when the block is left.
            mixer: has all states when the block is left.
            positions: of the whole sequence at most.
        """
        if not self._usable:
            yield
            return
        forward: Callable[..., Any] = self._model.forward
        run: _Run | None = None
        prompt = True

        @wraps(forward)
        def passes(*args: Any, **inputs: Any) -> Any:
            nonlocal run, prompt
            if prompt or not self._usable:
                prompt = False
                return forward(*args, **inputs)
            if run is None and inputs.get("position_ids") is None:  # only ``generate`` gives them
                return forward(*args, **inputs)
            if run is None:
                step = self._ready(forward, cache, recorder, mixer, positions, inputs)
                if step is None:
                    return forward(*args, **inputs)
                run = _Run(step, cache, recorder, mixer)
            return run.token(inputs["input_ids"], inputs.get("position_ids"))

        # torch.nn.Module has hooks before and after a forward pass, but no seam that runs something in its place.
        self._model.forward = passes
        try:
            yield
            if run is not None:
                run.finish()
        finally:
            del self._model.forward

    def _ready(
        self,
        forward: Callable[..., Any],
        cache: DynamicCache,
        recorder: AttentionRecorder,
        mixer: StateMixer,
        positions: int,
        inputs: dict[str, Any],
    ) -> _Step | None:
        """A step with enough positions; None, logged once, if the model's passes cannot be captured."""
        if self._step is not None and self._step.fits(positions, mixer):
            return self._step
        self._step = None  # frees its memory for the next one
        try:
            self._step = _Step(forward, cache, recorder, mixer, -(-positions // _MULTIPLE) * _MULTIPLE, inputs)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError) as error:
            self._usable = False
            _log.warning("decoding without CUDA graphs, as the passes of this model cannot be captured: %s", error)
        return self._step


class _Step:
    """One decoding step in static shapes: ``ids`` ``[1, 1]`` and ``position_ids`` ``[1, 1]`` (or ``[3, 1, 1]``, for multimodal
    rotary embeddings) in; ``output``, flat ``queries`` of all layers and ``mixed`` states ``[1, k, 1, d]`` out.
    """

    def __init__(
        self,
        forward: Callable[..., Any],
        cache: DynamicCache,
        recorder: AttentionRecorder,
        mixer: StateMixer,
        positions: int,
        inputs: dict[str, Any],
    ) -> None:
        self.positions = positions
        self.layer_weights = mixer.layer_weights
        self.ids, self.position_ids = inputs["input_ids"].clone(), inputs["position_ids"].clone()
        device = self.ids.device
        self.index = torch.zeros(1, dtype=torch.long, device=device)
        layers = [_StaticLayer(keys, values, positions, self.index) for keys, values in _filled(cache)]
        self._columns = torch.arange(positions, device=device)
        self._forward = forward
        self.cache = Cache(layers=list(layers))
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type == "cuda":
            self._capture(recorder, mixer)

    def fits(self, positions: int, mixer: StateMixer) -> bool:
        """Whether it can serve a command."""
        return positions <= self.positions and mixer.layer_weights is self.layer_weights

    def load(self, cache: DynamicCache) -> None:
        """Copy the keys and values of a prompt into the static caches."""
        length = cache.get_seq_length()
        for (to_keys, to_values), (keys, values) in zip(_filled(self.cache), _filled(cache), strict=True):
            to_keys[:, :, :length].copy_(keys)
            to_values[:, :, :length].copy_(values)
        self.index.fill_(length)

    def run(self, recorder: AttentionRecorder, mixer: StateMixer) -> None:
        """Compute what :attr:`ids` and :attr:`position_ids` ask for into :attr:`output`, ``queries`` and ``mixed``."""
        if self._graph is None:
            self._pass(recorder, mixer)
        else:
            self._graph.replay()

    def _capture(self, recorder: AttentionRecorder, mixer: StateMixer) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # warm-up, before capture
                self._pass(recorder, mixer)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # SAM may run in another thread at the same time; the capture is limited to this one.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._pass(recorder, mixer)
        self._graph = graph

    def _pass(self, recorder: AttentionRecorder, mixer: StateMixer) -> None:
        self.output = self._forward(
            input_ids=self.ids,
            position_ids=self.position_ids,
            attention_mask=(self._columns <= self.index)[None, None, None],
            cache=self.cache,
            use_cache=True,
            return_dict=True,
        )
        self.queries, self.mixed = recorder.take(), mixer.take()
        self.index.add_(1)


class _Run:
    """The decoding steps of one command."""

    def __init__(self, step: _Step, cache: DynamicCache, recorder: AttentionRecorder, mixer: StateMixer) -> None:
        self._step, self._cache, self._recorder, self._mixer = step, cache, recorder, mixer
        self._queries: list[Tensor] = []
        self._mixed: list[Tensor] = []
        step.load(cache)

    def token(self, ids: Tensor, position_ids: Tensor | None) -> Any:
        """Output of the model for one token ``[1, 1]``; without ``position_ids``, at the next position."""
        step = self._step
        if len(self._queries) + self._cache.get_seq_length() >= step.positions:
            raise ValueError(f"static decoding: expected at most {step.positions} positions, got more")
        step.ids.copy_(ids)
        if position_ids is None:
            step.position_ids.add_(1)
        else:
            step.position_ids.copy_(position_ids)
        step.run(self._recorder, self._mixer)
        self._queries.append(step.queries.clone())
        self._mixed.append(step.mixed.clone())
        step.output["cache"] = self._cache
        return step.output

    def finish(self) -> None:
        """Hand all rows to recorder and mixer."""
        start, count = self._cache.get_seq_length(), len(self._queries)
        pairs = zip(_filled(self._cache), _filled(self._step.cache), strict=True)
        keys = [(prompt, static[:, :, start : start + count].clone()) for (prompt, _), (static, _) in pairs]
        self._recorder.put(torch.stack(self._queries), keys)
        self._mixer.put(torch.cat(self._mixed, dim=2))


def _filled(cache: Cache) -> Iterator[tuple[Tensor, Tensor]]:
    """Keys and values of each layer."""
    for layer in cache.layers:
        assert isinstance(layer, CacheLayerMixin) and layer.keys is not None and layer.values is not None
        yield layer.keys, layer.values
