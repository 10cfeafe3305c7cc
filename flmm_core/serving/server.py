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
from flmm_core.serving.in_progress import InProgress
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
        hangs: called with the reason when the model does not return after ``command_deadline``, and with an empty text when
            it does; in between every request is refused.
        chat_batch: answers several chat commands in one batch; needed for a ``batch_size`` above 1.
        batch_size: maximum number of waiting chat commands that are answered in one batch.
    """

    def __init__(
        self,
        load: Callable[[], Pipeline],
        *,
        lost: Callable[[str], None],
        hangs: Callable[[str], None] = lambda reason: None,
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
        self._now = InProgress(self._changed, refuse_waiting=self._refuse_waiting, hangs=hangs)
        self._serving = self._ending = self._ended = False
        self._stopped = RefusedError(Status.SHUTTING_DOWN, "the node is not active")
        self._watch: WatchWork | None = None
        self._thresholds: Mapping[str, float] = {}
        """Thresholds that the pipeline does not have yet."""
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
        self._ending = self._ended = False
        self._thresholds = {}
        self._thread = threading.Thread(target=self._run, args=(loaded,), name="grounding", daemon=True)
        self._thread.start()
        return loaded

    def start(self, capacity: int, *, command_deadline: float = 0.0) -> None:
        """Accept requests from now on.

        Args:
            capacity: maximum number of waiting requests; those in progress do not count.
            command_deadline: seconds for a request in progress, after which it is cancelled and refused; 0: no limit.
        """
        with self._changed:
            assert self._pipeline is not None, "load first"
            self._queue.capacity = capacity
            self._now.deadline = command_deadline
            self._serving = True

    def stop(self, timeout: float, reason: str) -> None:
        """Accept no more requests, refuse the waiting ones, and let those in progress finish, or refuse them after ``timeout``.

        Args:
            timeout: seconds.
            reason: for the refusals.
        """
        with self._changed:
            self._stopped = RefusedError(Status.SHUTTING_DOWN, reason)
            self._serving = False
        self.watch(None)
        self._refuse_waiting(self._stopped)
        with self._changed:
            self._changed.wait_for(lambda: not self.busy, timeout)
            late = self._now.requests
        for request in late:
            _abandon(request, self._stopped)

    def unload(self, timeout: float) -> bool:
        """Free the pipeline of a server that was stopped.

        Args:
            timeout: seconds to wait for requests in progress, or for a load.

        Returns:
            Whether it was freed; if not, something is still in progress, and the server can be started again.
        """
        if self._thread is not None:
            with self._changed:
                self._ending = True
                self._changed.notify_all()
                if not self._changed.wait_for(lambda: self._ended, timeout + _ENDING):
                    self._ending = False
                    return False
            self._thread.join()
        self._thread = self._pipeline = self._watch = None
        release_memory()
        return True

    @property
    def busy(self) -> bool:
        """Whether a request is in progress."""
        return bool(self._now.requests)

    @property
    def waiting(self) -> int:
        """Number of requests in the queue."""
        return len(self._queue)

    @property
    def working(self) -> float:
        """Seconds since the work in progress began; 0 while there is none."""
        return self._now.seconds

    @property
    def watched(self) -> tuple[str, ...]:
        """The phrases of the watch list; empty without one."""
        work = self._watch
        return () if work is None else work.phrases

    def device_memory(self) -> int:
        """Bytes that the pipeline has on a GPU; 0 without one, and while nothing is loaded."""
        pipeline = self._pipeline
        return pipeline.device_memory() if pipeline is not None else 0

    def set_thresholds(self, **thresholds: float) -> None:
        """Change thresholds of the pipeline, by their names in the configuration, from the next request on."""
        with self._changed:
            self._thresholds = {**self._thresholds, **thresholds}

    # --- requests ---------------------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Queue a request; if it cannot be accepted, it is refused at once, or another one of a full queue is."""
        left_out: Request | None = request
        with self._changed:
            refusal = self._refusal()
            if refusal is None:
                left_out = self._queue.put(request)
                self._changed.notify_all()
        if left_out is not None:
            left_out.refuse(refusal or self._busy(displaced=left_out is not request))

    def _refusal(self) -> RefusedError | None:
        """Why no request can be accepted now; None if one can."""
        if not self._serving:
            return self._stopped
        return RefusedError(Status.MODEL_FAILURE, self._now.hanging) if self._now.hanging else None

    def _busy(self, *, displaced: bool) -> RefusedError:
        more = "; this one gave way to a client with fewer" if displaced else ""
        return RefusedError(Status.BUSY, f"busy: {self._queue.capacity} commands are waiting already (queue_size){more}")

    def _refuse_waiting(self, refusal: RefusedError) -> None:
        with self._changed:
            waiting = self._queue.clear()
        for request in waiting:
            request.refuse(refusal)

    def cancel(self, request: Request, refusal: RefusedError | None = None) -> None:
        """Refuse a request as cancelled, now; if it is in progress, its generation ends within one token.

        Args:
            request: submitted before.
            refusal: the reply; None: that of a request whose client cancelled it.
        """
        with self._changed:
            self._queue.remove(request)
        request.abort(refusal or cancelled())

    def watch(self, request: WatchRequest | None) -> None:
        """Process a watch list whenever no command waits; it replaces the list before. None ends that.

        Raises:
            RefusedError: the server takes no list, because it is stopped.
        """
        with self._changed:
            if request is not None and not self._serving:
                raise self._stopped
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
            self._end()
            loaded.set_exception(RuntimeError(one_line(error)))
            return
        loaded.set_result(facts)
        work: list[Request] | WatchWork | None = None
        try:
            while (work := self._next()) is not None:
                with self._now.limited():
                    self._apply_thresholds(pipeline)
                    if isinstance(work, WatchWork):
                        work.run(pipeline)
                    else:
                        answer_requests(pipeline, work, self._chat_batch)
                work = None  # else its images would stay in memory until the next command
        except BaseException as error:
            self._die(f"cannot serve: {one_line(error)}", work if isinstance(work, list) else [])
        self._end()

    def _next(self) -> list[Request] | WatchWork | None:
        """Take the next requests, or the watch list if none waits; None to end."""
        with self._changed:
            while not self._ending:
                work: list[Request] | WatchWork | None = self._watch
                if (request := self._queue.get()) is not None:
                    others = self._batch_size - 1 if request.mode == Mode.CHAT else 0
                    work = [request, *self._queue.get_like(Mode.CHAT, others)]
                pause = work.pause() if isinstance(work, WatchWork) else None
                if work is not None and not pause:
                    self._now.begin(work)
                    return work
                self._changed.wait(pause)
            self._ended = True
            return None

    def _apply_thresholds(self, pipeline: Pipeline) -> None:
        with self._changed:
            changed, self._thresholds = self._thresholds, {}
        if changed:
            pipeline.set_thresholds(**changed)

    def _end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _die(self, reason: str, in_work: list[Request]) -> None:
        refusal = RefusedError(Status.MODEL_FAILURE, reason)
        with self._changed:
            self._stopped, self._serving, self._pipeline, self._watch = refusal, False, None, None
            left = [*in_work, *self._queue.clear()]
        for request in left:
            request.refuse(refusal)
        self._lost(reason)


def _abandon(request: Request, refusal: RefusedError) -> None:
    """Refuse a request in progress; if its answer is being sent at this moment, wait until it has been sent."""
    request.abort(refusal)
    request.replied.wait(_SENDING)
