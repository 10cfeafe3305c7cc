"""What the worker thread of a server does now, since when, and what happens when that takes too long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from flmm_core.serving.requests import RefusedError, Request, Status
from flmm_core.serving.watch import WatchWork

_GIVING_UP = 2.0
"""Seconds in which a pipeline gives up a request that was cancelled, for instance at its next token; else it hangs."""


class InProgress:
    """Requests in progress, or a pass of the watch list, and their deadline.

    Args:
        changed: lock of the server's state, notified when the work is done.
        refuse_waiting: called with a refusal when the model hangs.
        hangs: called with the reason when the model hangs, and with an empty text when it has returned after all.
    """

    def __init__(
        self, changed: threading.Condition, *, refuse_waiting: Callable[[RefusedError], None], hangs: Callable[[str], None]
    ) -> None:
        self._changed = changed
        self._refuse_waiting = refuse_waiting
        self._hangs = hangs
        self._work: list[Request] | WatchWork | None = None
        self._began = 0.0
        self._reporting = threading.Lock()
        self._reported = ""
        self.deadline = 0.0
        """Seconds for one request, batch or pass; 0: no limit."""
        self.hanging = ""
        """Why the model is taken to hang; empty if it is not."""

    @property
    def requests(self) -> list[Request]:
        """Those in progress."""
        return work if isinstance(work := self._work, list) else []

    @property
    def seconds(self) -> float:
        """Time since the work in progress began; 0 without any."""
        began = self._began
        return 0.0 if self._work is None else time.monotonic() - began

    def begin(self, work: list[Request] | WatchWork) -> None:
        """Take this into work; the caller holds the lock, so that each request is always either waiting or in progress."""
        self._work, self._began = work, time.monotonic()

    @contextmanager
    def limited(self) -> Iterator[None]:
        """Do the work in the block, which ends it; a thread of its own looks at it at the deadline."""
        timer = threading.Timer(self.deadline, self._on_overdue, [self._work, self._began, self.deadline])
        timer.daemon = True
        if self.deadline > 0.0:
            timer.start()
        try:
            yield
        finally:
            timer.cancel()
            with self._changed:
                self._work, self.hanging = None, ""
                self._changed.notify_all()
            self._report()

    def _on_overdue(self, work: list[Request] | WatchWork, began: float, deadline: float) -> None:
        """Refuse what is in progress; if the model does not give it up, refuse what waits, too."""

        def returned() -> bool:  # also if the next pass of the same watch list has begun
            return self._work is not work or self._began != began

        limit = f"{deadline:g} s (command_deadline)"
        late = RefusedError(Status.MODEL_FAILURE, f"the model did not answer within {limit}")
        for request in work if isinstance(work, list) else []:
            request.abort(late)
        with self._changed:
            if isinstance(work, WatchWork) and not returned():
                work.abort(late)
            if self._changed.wait_for(returned, _GIVING_UP):
                return
            self.hanging = reason = f"the model hangs: it has not returned for more than {limit}"
        self._refuse_waiting(RefusedError(Status.MODEL_FAILURE, reason))
        self._report()

    def _report(self) -> None:
        """Say whether the model hangs, if that has changed; two threads may come here, and the last word is true."""
        with self._reporting:
            if (reason := self.hanging) != self._reported:
                self._reported = reason
                self._hangs(reason)
