"""SIGINT and SIGTERM: both ask a node to end in order. Imports nothing heavy, so that a node can call it first of all.

Python's own answer to SIGINT, an exception at any line, and the system's to SIGTERM, a death, both lose replies.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType


def leave_on_signals() -> None:
    """For the imports before a node exists: a signal ends the process at once, with status 0. No command was taken yet."""
    _handle(lambda number, frame: os._exit(0))


def stop_on_signals() -> threading.Event:
    """From now on a signal sets the returned event, which a node looks at.

    A further signal changes nothing: the end is under way then and takes 3 s at most, and the last replies must still go
    out when an impatient user presses Ctrl-C twice, or when launch sends SIGTERM after SIGINT. SIGQUIT and SIGKILL end the
    process at any time.
    """
    stop = threading.Event()
    _handle(lambda number, frame: stop.set())
    return stop


def _handle(handler: Callable[[int, FrameType | None], None]) -> None:
    signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, handler)
