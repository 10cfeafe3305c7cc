"""Serves one pipeline to several clients: a bounded queue, one thread, one reply to each command.

Load, start, submit, cancel, stop, start again, ..., unload. Whatever happens, each request that was submitted gets one reply:
an answer, or the reason why there is none.
"""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

import numpy as np
import torch

from flmm_core.plain_text import one_line
from flmm_core.serving.queue import FairQueue
from flmm_core.serving.requests import Mode, RefusedError, Reply, Request, Status, cancelled, refusing
from flmm_core.serving.standing import Standing, StandingWork
from flmm_core.types import GroundedAnswer
from flmm_core.watcher import Watcher

_ENDING = 0.2
"""Seconds in which a thread that has nothing to do any more ends."""
_SENDING = 0.3
"""Seconds for an answer that is ready at the last moment to be sent."""
_TRY_OUT = (240, 320)
"""Height and width of the grey image of the first pass."""


class Pipeline(Protocol):
    """What is served: :class:`flmm_core.pipeline.GroundingPipeline`, or what behaves like it."""

    def encode(self, image: np.ndarray) -> Any:
        """A handle of ``[H, W, 3]`` uint8 RGB for the commands about it."""

    def chat(
        self,
        image: Any,
        text: str,
        *,
        max_new_tokens: int | None = None,
        max_phrases: int | None = None,
        watch: Watcher | None = None,
    ) -> GroundedAnswer:
        """Answer and ground."""

    def refer(self, image: Any, phrases: Sequence[str], *, watch: Watcher | None = None) -> GroundedAnswer:
        """Ground given phrases."""

    def describe(self) -> Mapping[str, str]:
        """What it is and where it runs, for people."""

    def device_memory(self) -> int:
        """Bytes that it has on a GPU; 0 without one."""


class GroundingServer:
    """Serves a pipeline. All methods may be called from any thread, but one at a time from those that change its state.

    Args:
        load: builds the pipeline, in the worker's thread.
        lost: told once, with the reason, when the worker's thread died; every request got its refusal before. Nothing can be
            served any more until it was unloaded and loaded again.
    """

    def __init__(self, load: Callable[[], Pipeline], *, lost: Callable[[str], None]) -> None:
        self._load = load
        self._lost = lost
        self._changed = threading.Condition()
        self._queue = FairQueue()
        self._capacity = 0
        self._in_work: Request | None = None
        self._serving = False
        self._ending = False
        self._stopped = RefusedError(Status.SHUTTING_DOWN, "the node is not active")
        self._standing: StandingWork | None = None
        self._pipeline: Pipeline | None = None
        self._thread: threading.Thread | None = None

    # --- states -----------------------------------------------------------------------------------------------------------

    def load(self) -> Future[Mapping[str, str]]:
        """Load the pipeline and try it out, in the worker's thread.

        Returns:
            Done when that is done: what the pipeline says of itself, or what went wrong; then nothing is left of it.
        """
        assert self._thread is None, "unload first"
        loaded: Future[Mapping[str, str]] = Future()
        self._ending = False
        self._thread = threading.Thread(target=self._run, args=(loaded,), name="grounding", daemon=True)
        self._thread.start()
        return loaded

    def start(self, capacity: int) -> None:
        """Take requests from now on.

        Args:
            capacity: requests that may wait; the one in work does not count.
        """
        with self._changed:
            assert self._pipeline is not None, "load first"
            self._capacity = capacity
            self._serving = True

    def stop(self, timeout: float, reason: str) -> None:
        """Take no more requests, refuse those that wait, and let the one in work finish; refuse it too if it takes longer.

        Args:
            timeout: seconds.
            reason: why, for those who are refused.
        """
        self.watch(None)
        with self._changed:
            self._stopped = RefusedError(Status.SHUTTING_DOWN, reason)
            self._serving = False
            left = self._queue.clear()
        for request in left:
            request.refuse(self._stopped)
        with self._changed:
            self._changed.wait_for(lambda: self._in_work is None, timeout)
            late = self._in_work
        if late is not None:
            _abandon(late, self._stopped)

    def unload(self, timeout: float) -> bool:
        """Free the pipeline; it is to be stopped before.

        Args:
            timeout: seconds to wait for what is in work, or for a load.

        Returns:
            Whether it is gone; if not, something is still in work.
        """
        with self._changed:
            self._ending = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(timeout + _ENDING)
            if self._thread.is_alive():
                return False
        self._thread = self._pipeline = self._standing = None
        _give_memory_back()
        return True

    @property
    def serving(self) -> bool:
        """Whether requests are taken."""
        return self._serving

    @property
    def busy(self) -> bool:
        """Whether a request is in work."""
        return self._in_work is not None

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._queue)

    def device_memory(self) -> int:
        """Bytes on a GPU; 0 without one, and while nothing is loaded."""
        pipeline = self._pipeline
        return pipeline.device_memory() if pipeline is not None else 0

    # --- requests ---------------------------------------------------------------------------------------------------------

    def refusal(self) -> RefusedError | None:
        """Why no request can be taken now, if so."""
        if not self._serving:
            return self._stopped
        if len(self._queue) >= self._capacity:
            return RefusedError(Status.BUSY, f"busy: {self._capacity} commands are waiting already (queue_size)")
        return None

    def submit(self, request: Request) -> None:
        """Queue a request; it gets its refusal at once if it cannot be taken."""
        with self._changed:
            refusal = self.refusal()
            if refusal is None:
                self._queue.put(request)
                self._changed.notify_all()
        if refusal is not None:
            request.refuse(refusal)

    def cancel(self, request: Request) -> None:
        """Its sender does not want it any more: it gets its refusal now, and if it is in work, that ends within a token."""
        request.watch.cancel()
        with self._changed:
            self._queue.remove(request)
        request.refuse(cancelled())

    def watch(self, standing: Standing | None) -> None:
        """Work on a standing list whenever nothing else waits; None ends that."""
        with self._changed:
            if self._standing is not None:
                self._standing.cancel()
            self._standing = None if standing is None else StandingWork(standing, wanted=lambda: len(self._queue) > 0)
            self._changed.notify_all()

    # --- worker's thread --------------------------------------------------------------------------------------------------

    def _run(self, loaded: Future[Mapping[str, str]]) -> None:
        try:
            self._pipeline = pipeline = self._load()
            # A first pass over a grey image in both modes: the first command is then as fast as the others, and parts that
            # do not fit together are noticed now.
            grey = pipeline.encode(np.full((*_TRY_OUT, 3), 128, np.uint8))
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
                if isinstance(work, Request):
                    self._answer(pipeline, work)
                else:
                    work.run(pipeline)
                del work  # what is kept while nothing is to do is not freed
        except BaseException as error:
            self._die(f"cannot serve: {one_line(error)}")

    def _next(self) -> Request | StandingWork | None:
        """End one request and take up the next, in one step: between the two it would be nowhere."""
        with self._changed:
            self._in_work = None
            self._changed.notify_all()
            while True:
                if self._ending:
                    return None
                if (request := self._queue.get()) is not None:
                    self._in_work = request
                    return request
                pause = None if self._standing is None else self._standing.pause()
                if pause == 0.0:
                    return self._standing
                self._changed.wait(pause)

    def _answer(self, pipeline: Pipeline, request: Request) -> None:
        try:
            with refusing():
                reply = self._outcome(pipeline, request)
        except RefusedError as refusal:
            request.refuse(refusal)
        else:
            request.finish(reply)

    def _outcome(self, pipeline: Pipeline, request: Request) -> Reply:
        began = time.monotonic()
        limits = request.limits()
        picture = request.picture()
        fetched = time.monotonic()
        image = pipeline.encode(picture.pixels)
        if request.mode == Mode.REFER:
            answer = pipeline.refer(image, request.words, watch=request.watch)
        else:
            answer = pipeline.chat(
                image,
                request.words[0],
                max_new_tokens=limits.max_new_tokens,
                max_phrases=limits.max_phrases,
                watch=request.watch,
            )
        return Reply(
            Status.ANSWERED,
            answer=answer,
            picture=picture,
            source=picture.source,
            began=began,
            fetching=fetched - began,
        )

    def _die(self, reason: str) -> None:
        refusal = RefusedError(Status.MODEL_FAILURE, reason)
        with self._changed:
            self._stopped, self._serving, self._pipeline = refusal, False, None
            left = [self._in_work, *self._queue.clear()]
            self._in_work = None
            self._changed.notify_all()
        for request in left:
            if request is not None:
                request.refuse(refusal)
        self._lost(reason)


def _abandon(request: Request, refusal: RefusedError) -> None:
    """Refuse a request that is in work; its answer may be on its way just now, and is out then when this returns."""
    request.watch.cancel()
    request.refuse(refusal)
    request.replied.wait(_SENDING)


def _give_memory_back() -> None:
    """What was freed goes back to the GPU and to the system: Python and the C library would keep it for later."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)
