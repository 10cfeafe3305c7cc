"""Simulated robots that send commands to a fleet, and a record of what each of them got."""

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
    """A command of a robot about its camera image."""

    image: np.ndarray
    """``[H, W, 3]`` uint8 RGB."""
    words: str


@dataclass(frozen=True)
class Outcome:
    """The result of one command."""

    robot: int
    """Its number."""
    command: int
    """Its number among the commands of the robot."""
    answer: GroundedAnswer | None
    """None if there is no answer."""
    reason: str
    """Why there is none; empty otherwise."""
    seconds: float
    """From the command to its result."""


@dataclass(frozen=True)
class FleetRun:
    """All outcomes of one run."""

    outcomes: tuple[Outcome, ...]
    commands: int
    """Commands that were sent, by all robots."""
    seconds: float

    @property
    def answered(self) -> int:
        """Outcomes with an answer."""
        return sum(outcome.answer is not None for outcome in self.outcomes)

    @property
    def lost(self) -> int:
        """Commands that got no answer."""
        return self.commands - len({(one.robot, one.command) for one in self.outcomes if one.answer is not None})

    @property
    def duplicates(self) -> int:
        """Outcomes beyond the first of a command."""
        return sum(count - 1 for count in Counter((one.robot, one.command) for one in self.outcomes).values())

    @property
    def rate(self) -> float:
        """Answers a second."""
        return self.answered / self.seconds


def run_robots(
    address: str,
    tasks: Sequence[Sequence[Task]],
    *,
    timeout: float,
    on_outcome: Callable[[int], None] = lambda count: None,
) -> FleetRun:
    """Run all robots at the same time; each sends its next command when the last one has its result.

    Args:
        address: of the fleet.
        tasks: of each robot its commands.
        timeout: seconds for which a robot tries to get an answer.
        on_outcome: called after each outcome with the number of outcomes so far.
    """
    outcomes: list[Outcome] = []
    lock = threading.Lock()

    def robot(number: int) -> None:
        pipeline = RemotePipeline(address, patience=timeout)
        for command, task in enumerate(tasks[number]):
            began = time.monotonic()
            answer, reason = None, ""
            try:
                answer = pipeline.chat(pipeline.encode(task.image), task.words)
            except Exception as error:  # failures are what is measured
                reason = f"{type(error).__name__}: {error}"
            with lock:
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
    return FleetRun(tuple(outcomes), sum(map(len, tasks)), time.monotonic() - began)
