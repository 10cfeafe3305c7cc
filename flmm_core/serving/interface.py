"""What a server needs of a pipeline: the interface of GroundingPipeline, of a remote one, and of the fakes of tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from flmm_core.requests.callbacks import Callbacks
from flmm_core.requests.chat_command import ChatCommand
from flmm_core.types import GroundedAnswer


class Pipeline(Protocol):
    """What is served: :class:`flmm_core.pipeline.GroundingPipeline`, or an object with the same methods."""

    def encode(self, image: np.ndarray) -> Any:
        """Encode ``[H, W, 3]`` uint8 RGB; returns the handle that commands about this image take."""

    def chat(
        self,
        image: Any,
        text: str,
        *,
        max_new_tokens: int | None = None,
        max_phrases: int | None = None,
        callbacks: Callbacks | None = None,
    ) -> GroundedAnswer:
        """Generate an answer and ground its phrases."""

    def refer(self, image: Any, phrases: Sequence[str], *, callbacks: Callbacks | None = None) -> GroundedAnswer:
        """Ground given phrases."""

    def set_thresholds(self, **thresholds: float) -> None:
        """Change thresholds of the configuration, by their names, for later commands."""

    def describe(self) -> Mapping[str, str]:
        """Model, device and backend by name, for logs and diagnostics."""

    def device_memory(self) -> int:
        """Bytes that are allocated on a GPU; 0 without one."""


ChatBatch: TypeAlias = Callable[[Any, Sequence[ChatCommand]], Iterator[GroundedAnswer | Exception]]
"""Answers several chat commands in one batch: pipeline and commands in, their outcomes out, in order, each as soon as it is
ready."""
