"""Serves one pipeline to several clients: a bounded queue, one worker thread, one reply to each command.

The order of calls is load, start, submit and cancel, stop, start again, ..., unload. Every request that was submitted gets
exactly one reply: an answer, or a refusal with its reason.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future

import numpy as np

from flmm_core.common.plain_text import one_line
from flmm_core.common.process_memory import release_memory
from flmm_core.serving.interface import ChatBatch, Pipeline
from flmm_core.serving.queue import FairQueue
from flmm_core.serving.requests import Mode, RefusedError, Request, Status, cancelled
from flmm_core.serving.watch import WatchRequest, WatchWork
from flmm_core.serving.work import answer_requests

_ENDING = 0.2
"""Seconds in which an idle worker thread ends."""
_SENDING = 0.3
"""Seconds for sending an answer that is ready at the last moment."""
_WARM_UP = (240, 320)
"""Height and width in pixels of the grey image of the first pass."""


class GroundingServer:
    """Serves a pipeline. All methods may be called from any thread; those that change the state, one at a time.

    Args:
        load: builds the pipeline, in the worker thread.
        lost: called once, with the reason, when the worker thread died; every request was refused before. The server can be
            used again after :meth:`unload` and :meth:`load`.
        chat_batch: answers several chat commands in one batch; needed for a ``batch_size`` above 1.
        batch_size: maximum number of waiting chat commands that are answered in one batch.
    """

    def __init__(
        self,
        load: Callable[[], Pipeline],
        *,
        lost: Callable[[str], None],
        chat_batch: ChatBatch | None = None,
        batch_size: int = 1,
    ) -> None:
        if batch_size > 1 and chat_batch is None:
            raise ValueError(f"batch_size: expected 1 without chat_batch, got {batch_size}")
        self._load = load
        self._lost = lost
        self._chat_batch = chat_batch
        self._batch_size = batch_size
        self._changed = threading.Condition()
        self._queue = FairQueue()
        self._capacity = 0
        self._in_work: list[Request] = []
        self._serving = False
        self._ending = False
        self._stopped = RefusedError(Status.SHUTTING_DOWN, "the node is not active")
        self._watch: WatchWork | None = None
        self._pipeline: Pipeline | None = None
        self._thread: threading.Thread | None = None

    # --- states -----------------------------------------------------------------------------------------------------------

    def load(self) -> Future[Mapping[str, str]]:
        """Load the pipeline and run it once, in the worker thread.

        Returns:
            The pipeline's description when both have succeeded; else the error, and nothing stays loaded.
        """
        assert self._thread is None, "unload first"
        loaded: Future[Mapping[str, str]] = Future()
        self._ending = False
        self._thread = threading.Thread(target=self._run, args=(loaded,), name="grounding", daemon=True)
        self._thread.start()
        return loaded

    def start(self, capacity: int) -> None:
        """Accept requests from now on.

        Args:
            capacity: maximum number of waiting requests; those in progress do not count.
        """
        with self._changed:
            assert self._pipeline is not None, "load first"
            self._capacity = capacity
            self._serving = True

    def stop(self, timeout: float, reason: str) -> None:
        """Accept no more requests, refuse the waiting ones, and let those in progress finish, or refuse them after ``timeout``.

        Args:
            timeout: seconds.
            reason: for the refusals.
        """
        self.watch(None)
        with self._changed:
            self._stopped = RefusedError(Status.SHUTTING_DOWN, reason)
            self._serving = False
            waiting = self._queue.clear()
        for request in waiting:
            request.refuse(self._stopped)
        with self._changed:
            self._changed.wait_for(lambda: not self._in_work, timeout)
            late = self._in_work
        for request in late:
            _abandon(request, self._stopped)

    def unload(self, timeout: float) -> bool:
        """Free the pipeline of a server that was stopped.

        Args:
            timeout: seconds to wait for requests in progress, or for a load.

        Returns:
            Whether it was freed; if not, a request is still in progress.
        """
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout + _ENDING)
            if self._thread.is_alive():
                return False
        self._thread = self._pipeline = self._watch = None
        release_memory()
        return True

    @property
    def busy(self) -> bool:
        """Whether a request is in progress."""
        return bool(self._in_work)

    @property
    def waiting(self) -> int:
        """Number of requests in the queue."""
        return len(self._queue)

    def device_memory(self) -> int:
        """Bytes that the pipeline has on a GPU; 0 without one, and while nothing is loaded."""
        pipeline = self._pipeline
        return pipeline.device_memory() if pipeline is not None else 0

    # --- requests ---------------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Queue a request; if it cannot be accepted, it is refused at once."""
        with self._changed:
            refusal = self._refusal()
            if refusal is None:
                self._queue.put(request)
                self._changed.notify_all()
        if refusal is not None:
            request.refuse(refusal)

    def _refusal(self) -> RefusedError | None:
        """Why no request can be accepted now; None if one can."""
        if not self._serving:
            return self._stopped
        if len(self._queue) >= self._capacity:
            return RefusedError(Status.BUSY, f"busy: {self._capacity} commands are waiting already (queue_size)")
        return None

    def cancel(self, request: Request) -> None:
        """Refuse a request as cancelled, now; if it is in progress, its generation ends within one token."""
        request.callbacks.cancel()
        with self._changed:
            self._queue.remove(request)
        request.refuse(cancelled())

    def watch(self, request: WatchRequest | None) -> None:
        """Process a watch list whenever no command waits; it replaces the list before. None ends that."""
        with self._changed:
            if self._watch is not None:
                self._watch.cancel()
            self._watch = None if request is None else WatchWork(request, preempted=lambda: len(self._queue) > 0)
            self._changed.notify_all()

    # --- worker thread ----------------------------------------------------------------------------------------------------

    def _run(self, loaded: Future[Mapping[str, str]]) -> None:
        try:
            self._pipeline = pipeline = self._load()
            # A first pass over a grey image in both modes: it allocates and compiles what later commands reuse, and fails
            # now if parts of the pipeline do not fit together.
            grey = pipeline.encode(np.full((*_WARM_UP, 3), 128, np.uint8))
            pipeline.refer(grey, ["thing"])
            pipeline.chat(grey, "thing", max_new_tokens=2)
            facts = pipeline.describe()
        except BaseException as error:
            self._pipeline = None
            loaded.set_exception(RuntimeError(one_line(error)))
            return
        loaded.set_result(facts)
        try:
            while (work := self._next()) is not None:
                if isinstance(work, WatchWork):
                    work.run(pipeline)
                else:
                    answer_requests(pipeline, work, self._chat_batch)
                del work  # else its images would stay in memory until the next command
        except BaseException as error:
            self._die(f"cannot serve: {one_line(error)}")

    def _next(self) -> list[Request] | WatchWork | None:
        """Finish the requests in progress and take the next ones, in one step: every request is always in one list."""
        with self._changed:
            self._in_work = []
            self._changed.notify_all()
            while True:
                if self._ending:
                    return None
                if (request := self._queue.get()) is not None:
                    others = self._batch_size - 1 if request.mode == Mode.CHAT else 0
                    self._in_work = [request, *self._queue.get_like(Mode.CHAT, others)]
                    return self._in_work
                pause = None if self._watch is None else self._watch.pause()
                if pause == 0.0:
                    return self._watch
                self._changed.wait(pause)

    def _die(self, reason: str) -> None:
        refusal = RefusedError(Status.MODEL_FAILURE, reason)
        with self._changed:
            self._stopped, self._serving, self._pipeline = refusal, False, None
            left = [*self._in_work, *self._queue.clear()]
            self._in_work = []
            self._changed.notify_all()
        for request in left:
            request.refuse(refusal)
        self._lost(reason)


def _abandon(request: Request, refusal: RefusedError) -> None:
    """Refuse a request in progress; if its answer is being sent at this moment, wait until it has been sent."""
    request.callbacks.cancel()
    request.refuse(refusal)
    request.replied.wait(_SENDING)
