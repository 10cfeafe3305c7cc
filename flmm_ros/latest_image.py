"""Keeps the newest image message of a camera, serialized."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from rclpy.time import Time


@dataclass(frozen=True)
class Arrival:
    """A serialized image message."""

    serialized: bytes
    time: Time
    """When it arrived, on the node's clock."""


class LatestImage:
    """Keeps only the newest image message, serialized: most are replaced before a command needs them. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._arrival: Arrival | None = None
        self._taken: Arrival | None = None
        self.skipped = 0
        """Number of images that were replaced before a command used them."""

    def put(self, serialized: bytes, now: Time) -> None:
        """Replace the image."""
        with self._changed:
            if self._arrival is not None and self._arrival is not self._taken:
                self.skipped += 1
            self._arrival = Arrival(serialized, now)
            self._changed.notify_all()

    def get(self, timeout: float) -> Arrival | None:
        """The newest image; waits up to ``timeout`` seconds for the first one, and returns None if none arrives."""
        with self._changed:
            self._changed.wait_for(lambda: self._arrival is not None, timeout)
            self._taken = self._arrival
            return self._arrival

    def clear(self) -> None:
        """Discard the image."""
        with self._changed:
            self._arrival = self._taken = None
