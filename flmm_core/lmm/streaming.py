"""Streaming and stopping of ``generate``: tokens as they are generated, cancellation, and lengths of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer


class CancelCriteria(StoppingCriteria):
    """Ends answers within one token.

    Args:
        cancelled: of each sequence, asked after each token; None for one that cannot be cancelled.
    """

    def __init__(self, cancelled: Sequence[Callable[[], bool] | None]) -> None:
        self._cancelled = cancelled

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        """Whether each sequence ends here."""
        ends = [ask is not None and ask() for ask in self._cancelled]
        return torch.tensor(ends, device=input_ids.device)  # type: ignore[return-value]


class LengthCriteria(StoppingCriteria):
    """Ends each sequence of a batch at its own length.

    Args:
        lengths: ``[b]`` tokens.
    """

    def __init__(self, lengths: Tensor) -> None:
        self._lengths = lengths

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        """Whether each sequence ends here."""
        return self._lengths <= input_ids.shape[1]  # type: ignore[return-value]


class TokenStreamer(BaseStreamer):
    """Passes the ids generated so far, of each sequence, to a callback. ``generate`` streams the prompt first."""

    def __init__(self, report: Callable[[Sequence[Sequence[int]]], None]) -> None:
        self._report = report
        self._ids: list[list[int]] | None = None

    def put(self, value: Tensor) -> None:
        """Receive the prompts, or the next token of each sequence."""
        if self._ids is None:
            self._ids = [[] for _ in value]
            return
        for ids, token in zip(self._ids, value.tolist(), strict=True):
            ids.append(token)
        self._report(self._ids)

    def end(self) -> None:
        """Nothing is buffered."""
