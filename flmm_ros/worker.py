"""One thread that works off commands, and a bounded queue before it. Knows nothing of ROS or of models.

Whatever happens, each command that was offered is given back: to ``handle`` in the worker's thread, to the caller
(``offer`` returned False), or to ``abandon`` when the worker is closed or fails. A command that is in work at such a time
goes to ``abandon`` too, while ``handle`` may still run: which of them replies is for the command itself to settle.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

_ENDING = 0.2
"""Seconds in which a thread that has nothing to do any more ends."""


class Worker(Generic[T]):
    """Calls ``prepare`` once and then ``handle`` for each command, in one thread and in the order of arrival.

    Args:
        capacity: commands that may wait; the one in work does not count.
        handle: must not raise; if it does all the same, ``failed`` is told and the worker stops.
        abandon: receives each command that waited when the worker was closed or failed, and the one that was in work and
            did not end in time. In the thread that closes, or in the worker's after a failure.
        prepare: slow preparation; commands wait meanwhile. If it raises, ``failed`` is told and the worker stops.
        failed: receives the exception that stopped the worker, in the worker's thread.
    """

    def __init__(
        self,
        capacity: int,
        handle: Callable[[T], None],
        abandon: Callable[[T], None],
        *,
        prepare: Callable[[], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        self._capacity = capacity
        self._handle = handle
        self._abandon = abandon
        self._prepare = prepare
        self._failed = failed
        self._waiting: deque[T] = deque()
        self._in_work: T | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="grounding", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def offer(self, command: T) -> bool:
        """Queue a command.

        Returns:
            False if the queue is full or the worker has stopped: the command was not taken.
        """
        with self._changed:
            if self._closed or len(self._waiting) >= self._capacity:
                return False
            self._waiting.append(command)
            self._changed.notify()
            return True

    @property
    def waiting(self) -> int:
        """Commands in the queue."""
        return len(self._waiting)

    @property
    def closed(self) -> bool:
        """Whether the worker takes no more commands."""
        return self._closed

    def close(self, timeout: float) -> bool:
        """Take no more commands, abandon those that wait, and wait for the one in work; abandon it too if it takes longer.

        The preparation is not waited for: no command is in work then.

        Args:
            timeout: seconds.

        Returns:
            Whether the thread has ended.
        """
        self._stop()
        with self._changed:
            self._changed.wait_for(lambda: self._in_work is None, timeout)
            late = self._in_work
        if late is not None:
            self._abandon(late)
        self._thread.join(_ENDING)
        return not self._thread.is_alive()

    def _stop(self) -> None:
        with self._changed:
            self._closed = True
            left = list(self._waiting)
            self._waiting.clear()
            self._changed.notify_all()
        for command in left:
            self._abandon(command)

    def _run(self) -> None:
        try:
            self._prepare()
            while (command := self._next()) is not None:
                self._handle(command)
        except BaseException as error:
            self._failed(error)
            if self._in_work is not None:
                self._abandon(self._in_work)
            self._stop()
            with self._changed:
                self._in_work = None
                self._changed.notify_all()

    def _next(self) -> T | None:
        """End one command and take up the next, in one step: between the two it would be nowhere."""
        with self._changed:
            self._in_work = None
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._waiting or self._closed)
            self._in_work = self._waiting.popleft() if self._waiting else None
            return self._in_work
