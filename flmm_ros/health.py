"""What the node knows of its own health, as /diagnostics says it. Thread-safe; knows no topics and no models."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from flmm_ros.msg import GroundedAnswer, StageDurations

_REMEMBERED = 100
"""Answers that percentiles are of."""
_ARRIVALS = 30
"""Images that their rate is of."""
_RECENT = 10.0
"""Seconds for which a failure of the model on a command is a warning."""

_STATUS = {
    getattr(GroundedAnswer, name): name.removeprefix("STATUS_").lower().replace("_", " ")
    for name in dir(GroundedAnswer)
    if name.startswith("STATUS_")
}
"""Names of the statuses of a reply."""
_TROUBLE = (GroundedAnswer.STATUS_MODEL_FAILURE, GroundedAnswer.STATUS_OUT_OF_MEMORY)


class Health:
    """Counts what happens; :meth:`status` puts it into a message."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._state, self._progress = "unconfigured", ""
        self._facts: Mapping[str, str] = {}
        self._answers = 0
        self._refusals: Counter[int] = Counter()
        self._trouble = ("", float("-inf"))
        self._images = self._unreadable = self._looks = self._tracked = 0
        self._arrivals: deque[float] = deque(maxlen=_ARRIVALS)
        self._durations: deque[StageDurations] = deque(maxlen=_REMEMBERED)

    def enter(self, state: str, message: str = "") -> None:
        """The node's state, and what is in work or went wrong."""
        with self._lock:
            self._state, self._progress = state, message

    def loaded(self, facts: Mapping[str, str]) -> None:
        """Which model it is and where it runs; nothing once it is freed."""
        with self._lock:
            self._facts = facts

    def image(self) -> None:
        """An image message arrived."""
        with self._lock:
            self._images += 1
            self._arrivals.append(time.monotonic())

    def unreadable(self) -> None:
        """An image message could not be kept."""
        with self._lock:
            self._unreadable += 1

    def answered(self, durations: StageDurations) -> None:
        """A command was answered."""
        with self._lock:
            self._answers += 1
            self._durations.append(durations)

    def watched(self, tracked: bool) -> None:
        """An image of the standing list was looked at."""
        with self._lock:
            self._looks += 1
            self._tracked += tracked

    def refused(self, status: int, reason: str) -> None:
        """A command was refused."""
        with self._lock:
            self._refusals[status] += 1
            if status in _TROUBLE:
                self._trouble = (reason, time.monotonic())

    def status(
        self,
        name: str,
        *,
        waiting: int,
        capacity: int,
        skipped: int,
        oldest_image: float,
        slow_answer: float,
        device_memory: int,
    ) -> DiagnosticStatus:
        """The message.

        Args:
            name: of the node.
            waiting: commands in the queue.
            capacity: of the queue.
            skipped: images that nobody looked at.
            oldest_image: seconds after which a missing image is a warning; 0: never.
            slow_answer: seconds that the slowest 5 % of answers may take without a warning; 0: any.
            device_memory: bytes on the GPU; 0 without one.
        """
        with self._lock:
            now = time.monotonic()
            age = now - self._arrivals[-1] if self._arrivals else None
            totals = [durations.total for durations in self._durations]
            level, message = self._verdict(now, age, waiting, capacity, oldest_image, slow_answer, totals)
            values = {
                "state": self._state,
                **({"progress": self._progress} if self._progress else {}),
                **self._facts,
                "commands waiting": f"{waiting} of {capacity}",
                "answers": str(self._answers),
                "refusals": str(self._refusals.total()),
                **{f"refused, {_STATUS.get(status, status)}": str(n) for status, n in sorted(self._refusals.items())},
                "images watched": f"{self._looks}, {self._tracked} of them tracked",
                "images received": str(self._images),
                "images skipped": str(skipped),
                "images unreadable": str(self._unreadable),
                "image rate, Hz": f"{_rate(self._arrivals, now):.1f}",
                "image age, s": "none yet" if age is None else f"{age:.1f}",
                **_percentiles(self._durations),
                "process memory, MB": f"{_resident() / 1e6:.0f}",
                **({"device memory, MB": f"{device_memory / 1e6:.0f}"} if device_memory else {}),
            }
        return DiagnosticStatus(
            level=level,
            name=f"{name}: grounding",
            message=message,
            hardware_id=self._facts.get("device", ""),
            values=[KeyValue(key=key, value=value) for key, value in values.items()],
        )

    def _verdict(
        self,
        now: float,
        age: float | None,
        waiting: int,
        capacity: int,
        oldest_image: float,
        slow_answer: float,
        totals: Sequence[float],
    ) -> tuple[bytes, str]:
        if self._state == "failed":
            return DiagnosticStatus.ERROR, self._progress
        if self._state != "ready":
            return DiagnosticStatus.WARN, f"{self._state}: {self._progress}".removesuffix(": ")
        reason, when = self._trouble
        if now - when < _RECENT:
            return DiagnosticStatus.WARN, reason
        if waiting >= capacity:
            return DiagnosticStatus.WARN, f"busy: {waiting} commands are waiting (queue_size)"
        if oldest_image > 0 and (age is None or age > oldest_image):
            last = "none has arrived yet" if age is None else f"the last came {age:.1f} s ago"
            return DiagnosticStatus.WARN, f"no image: {last}"
        if slow_answer > 0 and totals and (slowest := percentile(totals, 0.95)) > slow_answer:
            return DiagnosticStatus.WARN, f"slow: 5 % of the last answers took {slowest:.2f} s or more (slow_answer)"
        return DiagnosticStatus.OK, "ready"


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest of ``values`` that at least ``share`` of them do not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1))]


def _percentiles(durations: Sequence[StageDurations]) -> dict[str, str]:
    found = {}
    for stage in StageDurations.get_fields_and_field_types() if durations else ():
        values = [getattr(one, stage) for one in durations]
        found[f"{stage} p50 / p95, s"] = f"{percentile(values, 0.5):.3f} / {percentile(values, 0.95):.3f}"
    return found


def _rate(arrivals: Sequence[float], now: float) -> float:
    """Images a second over the last of them; it sinks when none comes any more."""
    return (len(arrivals) - 1) / max(now - arrivals[0], 1e-9) if len(arrivals) > 1 else 0.0


def _resident() -> int:
    """Bytes of memory that the process has."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
