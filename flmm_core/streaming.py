"""What looks in on ``generate`` while it writes: tokens as they come, and the wish to stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteria
from transformers.generation.streamers import BaseStreamer


class CancelCriteria(StoppingCriteria):
    """Ends an answer within one token."""

    def __init__(self, cancelled: Callable[[], bool]) -> None:
        self._cancelled = cancelled

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> torch.BoolTensor:
        """Whether each sequence ends here."""
        return torch.full((len(input_ids),), self._cancelled(), device=input_ids.device)  # type: ignore[return-value]


class TokenStreamer(BaseStreamer):
    """Hands the ids so far to a callback; the first thing that ``generate`` streams is the prompt."""

    def __init__(self, look: Callable[[Sequence[int]], None]) -> None:
        self._look = look
        self._ids: list[int] | None = None

    def put(self, value: Tensor) -> None:
        """Take the prompt, or the next token."""
        if self._ids is None:
            self._ids = []
            return
        self._ids.extend(value.flatten().tolist())
        self._look(self._ids)

    def end(self) -> None:
        """Nothing is buffered."""
