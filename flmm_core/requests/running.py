"""A command that runs: its image, its callbacks, and how long its stages take."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from flmm_core.errors import CommandCancelledError
from flmm_core.lmm.generation import Question
from flmm_core.requests.callbacks import Callbacks, Stage
from flmm_core.requests.chat_command import ChatCommand
from flmm_core.requests.image_handle import ImageHandle
from flmm_core.types import StageSeconds


class RunningCommand:
    """The clock of one command's stages.

    Args:
        image: that it is about.
        callbacks: told of each stage; None for nobody.
        device: of the models, whose work is waited for before the clock is read.
    """

    def __init__(self, image: ImageHandle, callbacks: Callbacks | None, device: torch.device) -> None:
        self.image = image
        self.callbacks = callbacks or Callbacks()
        self._device = device
        self._begun: list[tuple[Stage | None, float]] = []

    def begin(self, stage: Stage) -> None:
        """End the stage before and begin another.

        Raises:
            CommandCancelledError: the command is cancelled.
        """
        self._begun.append((stage, self._now()))
        self.require_running(f"before the stage {stage}")
        self.callbacks.on_stage(stage)

    def require_running(self, when: str) -> None:
        """Raise CommandCancelledError if the command is cancelled; ``when`` says where it was found out."""
        if self.callbacks.cancelled():
            raise CommandCancelledError(f"command: cancelled {when}")

    def pause(self) -> None:
        """End the stage before, while other commands run."""
        self._begun.append((None, self._now()))

    def seconds(self) -> StageSeconds:
        """Durations of the stages up to now."""
        ends = [*(at for _, at in self._begun[1:]), self._now()]
        return StageSeconds(**{stage: end - at for (stage, at), end in zip(self._begun, ends, strict=True) if stage})

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


@dataclass(frozen=True)
class RunningChat:
    """A chat command between its two halves: what the LMM is to answer."""

    command: ChatCommand
    run: RunningCommand
    question: Question
