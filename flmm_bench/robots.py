"""Simulated robots that give commands to a fleet, and the books of what they got."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from flmm_core.serving.remote import RemotePipeline
from flmm_core.types import GroundedAnswer


@dataclass(frozen=True)
class Task:
    """A command of a robot about what it sees."""

    image: np.ndarray
    """``[H, W, 3]`` uint8 RGB."""
    words: str


@dataclass(frozen=True)
class Outcome:
    """What a robot got for a command."""

    robot: int
    command: int
    answer: GroundedAnswer | None
    """None if it got none."""
    reason: str
    """Why it got none."""
    seconds: float


@dataclass(frozen=True)
class Books:
    """All outcomes of one run."""

    outcomes: tuple[Outcome, ...]
    given: int
    """Commands."""
    seconds: float

    @property
    def answered(self) -> int:
        """Commands with an answer."""
        return sum(outcome.answer is not None for outcome in self.outcomes)

    @property
    def lost(self) -> int:
        """Commands without an answer, or without any outcome."""
        return self.given - len({(one.robot, one.command) for one in self.outcomes if one.answer is not None})

    @property
    def doubled(self) -> int:
        """Outcomes beyond the first of a command."""
        return sum(count - 1 for count in Counter((one.robot, one.command) for one in self.outcomes).values())

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.answered / self.seconds


def drive(
    address: str,
    tasks: Sequence[Sequence[Task]],
    *,
    patience: float,
    on_outcome: Callable[[int], None] = lambda count: None,
) -> Books:
    """Let robots give their commands, each one after the other, all robots at once.

    Args:
        address: of the fleet.
        tasks: commands of each robot.
        patience: seconds for which a robot tries to get an answer.
        on_outcome: called with the number of outcomes so far after each.
    """
    outcomes: list[Outcome] = []
    written = threading.Lock()

    def robot(number: int) -> None:
        pipeline = RemotePipeline(address, patience=patience)
        for command, task in enumerate(tasks[number]):
            began = time.monotonic()
            answer, reason = None, ""
            try:
                answer = pipeline.chat(pipeline.encode(task.image), task.words)
            except Exception as error:  # the books are about just that
                reason = f"{type(error).__name__}: {error}"
            with written:
                outcomes.append(Outcome(number, command, answer, reason, time.monotonic() - began))
                count = len(outcomes)
            on_outcome(count)
        pipeline.close()

    threads = [threading.Thread(target=robot, args=(number,), daemon=True) for number in range(len(tasks))]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return Books(tuple(outcomes), sum(map(len, tasks)), time.monotonic() - began)
