"""Handlers of SIGINT and SIGTERM, which both end a node cleanly. Imports little, so that a node can call it first.

The defaults would lose replies: Python raises an exception at any line at SIGINT, and the system kills the process at SIGTERM.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType


def leave_on_signals() -> None:
    """For the time before a node exists: a signal ends the process at once, with status 0."""
    _handle(lambda number, frame: os._exit(0))


def stop_on_signals() -> threading.Event:
    """From now on a signal sets the returned event, which the node polls.

    Further signals change nothing: shutdown takes 3 s at most, and the last replies must be sent even if a user presses
    Ctrl-C twice, or launch sends SIGTERM after SIGINT. SIGQUIT and SIGKILL end the process at any time.
    """
    stop = threading.Event()
    _handle(lambda number, frame: stop.set())
    return stop


def _handle(handler: Callable[[int, FrameType | None], None]) -> None:
    signal.signal(signal.SIGINT, handler)
    signal.signal(signal.SIGTERM, handler)
