"""Health of a server of commands: counts, durations, warnings and errors. Independent of any transport."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum

from flmm_core.common.process_memory import resident_bytes
from flmm_core.serving.requests import Status

_REMEMBERED = 100
"""Number of last answers from which percentiles are computed."""
_LOSSY = 0.5
"""Share of the expected images; below it there is a warning."""
_RECENT = 10.0
"""Seconds for which a failed command is reported as a warning."""

_TROUBLE = (Status.MODEL_FAILURE, Status.OUT_OF_MEMORY)


class Level(IntEnum):
    """Severity, as in diagnostics."""

    OK = 0
    WARN = 1
    ERROR = 2


@dataclass(frozen=True)
class CameraHealth:
    """How the images of a camera arrive."""

    skipped: int
    """Number of images that were replaced before a command used them."""
    received: float
    """Images per second; 0 if fewer than two have arrived."""
    expected: float
    """Images per second that the camera sends; 0 if that is not known."""
    ahead: float
    """Seconds by which the camera's clock is ahead; 0 if that is within reason."""
    trouble: str
    """Why images may be missing, and what helps."""


@dataclass(frozen=True)
class HealthReport:
    """Health at one moment."""

    level: Level
    message: str
    values: Mapping[str, str]
    """Text by name, in the order of display."""


class Health:
    """Counts events; :meth:`report` summarises them. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._state, self._progress = "unconfigured", ""
        self._facts: Mapping[str, str] = {}
        self._answers = 0
        self._refusals: Counter[Status] = Counter()
        self._trouble = ("", float("-inf"))
        self._hangs = ""
        self._images = self._unreadable = self._watched = self._tracked = 0
        self._arrived: float | None = None
        """When the last image arrived, in seconds on the monotonic clock."""
        self._durations: deque[Mapping[str, float]] = deque(maxlen=_REMEMBERED)

    def enter(self, state: str, message: str = "") -> None:
        """Set the state of the server, with its progress or its error."""
        with self._lock:
            self._state, self._progress = state, message

    def loaded(self, facts: Mapping[str, str]) -> None:
        """Set the description of the model and its device; empty after it was freed."""
        with self._lock:
            self._facts = facts

    def hangs(self, reason: str) -> None:
        """Set why the model is taken to hang; empty when it has returned."""
        with self._lock:
            self._hangs = reason

    def image(self) -> None:
        """Count an image message."""
        with self._lock:
            self._images += 1
            self._arrived = time.monotonic()

    def unreadable(self) -> None:
        """Count an image message that could not be stored."""
        with self._lock:
            self._unreadable += 1

    def answered(self, durations: Mapping[str, float]) -> None:
        """Count an answer; ``durations`` are seconds by stage, ``total`` among them."""
        with self._lock:
            self._answers += 1
            self._durations.append(durations)

    def watched(self, tracked: bool) -> None:
        """Count an image that the watch list was grounded on."""
        with self._lock:
            self._watched += 1
            self._tracked += tracked

    def refused(self, status: Status, reason: str) -> None:
        """Count a refusal."""
        with self._lock:
            self._refusals[status] += 1
            if status in _TROUBLE:
                self._trouble = (reason, time.monotonic())

    def report(
        self,
        *,
        waiting: int,
        working: float,
        capacity: int,
        camera: CameraHealth | None,
        oldest_image: float,
        slow_answer: float,
        device_memory: int,
    ) -> HealthReport:
        """Report the health now.

        Args:
            waiting: number of commands in the queue.
            working: seconds since the work in progress began; 0 while there is none.
            capacity: of the queue.
            camera: how its images arrive; None if each command carries its own image.
            oldest_image: seconds without an image after which there is a warning; 0: never.
            slow_answer: a warning if the slowest 5 % of answers take more seconds than this; 0: never.
            device_memory: bytes on the GPU; 0 without one.
        """
        with self._lock:
            now = time.monotonic()
            age = None if self._arrived is None else now - self._arrived
            totals = [durations["total"] for durations in self._durations]
            level, message = self._verdict(now, waiting, capacity, slow_answer, totals)
            if level == Level.OK and camera is not None and (trouble := _camera_trouble(camera, age, oldest_image)):
                level, message = Level.WARN, trouble
            values = {
                "state": self._state,
                **({"progress": self._progress} if self._progress else {}),
                **self._facts,
                "commands waiting": f"{waiting} of {capacity}",
                "in progress, s": f"{working:.1f}",
                "answers": str(self._answers),
                "refusals": str(self._refusals.total()),
                **{f"refused, {_name(status)}": str(count) for status, count in sorted(self._refusals.items())},
                **(self._camera_values(camera, age) if camera is not None else {}),
                **_percentiles(self._durations),
                "process memory, MB": f"{resident_bytes() / 1e6:.0f}",
                **({"device memory, MB": f"{device_memory / 1e6:.0f}"} if device_memory else {}),
            }
        return HealthReport(level, message, values)

    def _camera_values(self, camera: CameraHealth, age: float | None) -> dict[str, str]:
        return {
            "images watched": f"{self._watched}, {self._tracked} of them tracked",
            "images received": str(self._images),
            "images skipped": str(camera.skipped),
            "images unreadable": str(self._unreadable),
            "image rate, Hz": f"{camera.received:.1f}",
            "image rate expected, Hz": f"{camera.expected:.1f}" if camera.expected else "unknown",
            "image age, s": "none yet" if age is None else f"{age:.1f}",
        }

    def _verdict(
        self,
        now: float,
        waiting: int,
        capacity: int,
        slow_answer: float,
        totals: Sequence[float],
    ) -> tuple[Level, str]:
        if self._state == "failed":
            return Level.ERROR, self._progress
        if self._hangs:
            return Level.ERROR, self._hangs
        if self._state != "ready":
            return Level.WARN, f"{self._state}: {self._progress}".removesuffix(": ")
        reason, when = self._trouble
        if now - when < _RECENT:
            return Level.WARN, reason
        if waiting >= capacity:
            return Level.WARN, f"busy: {waiting} commands are waiting (queue_size)"
        if slow_answer > 0 and totals and (slowest := percentile(totals, 0.95)) > slow_answer:
            return Level.WARN, f"slow: 5 % of the last answers took {slowest:.2f} s or more (slow_answer)"
        return Level.OK, "ready"


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of ``values`` that is not exceeded by at least ``share`` (0 to 1) of them."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1))]


def _name(status: Status) -> str:
    return status.name.lower().replace("_", " ")


def _percentiles(durations: Sequence[Mapping[str, float]]) -> dict[str, str]:
    found = {}
    for stage in durations[-1] if durations else ():
        values = [one[stage] for one in durations]
        found[f"{stage} p50 / p95, s"] = f"{percentile(values, 0.5):.3f} / {percentile(values, 0.95):.3f}"
    return found


def _camera_trouble(camera: CameraHealth, age: float | None, oldest_image: float) -> str:
    """What is wrong with a camera; empty if nothing is."""
    if oldest_image > 0 and (age is None or age > oldest_image):
        last = "none has arrived yet" if age is None else f"the last came {age:.1f} s ago"
        return f"no image: {last}; {camera.trouble}"
    if camera.received < _LOSSY * camera.expected:
        return f"images are lost: {camera.received:.1f} of {camera.expected:.1f} Hz arrive; {camera.trouble}"
    return f"the camera's clock is {camera.ahead:.1f} s ahead" if camera.ahead else ""
