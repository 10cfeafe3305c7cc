"""Serves one pipeline to several clients: a bounded queue, one thread, one reply to each command.

Load, start, submit, cancel, stop, start again, ..., unload. Whatever happens, each request that was submitted gets one reply:
an answer, or the reason why there is none.
"""

from __future__ import annotations

import ctypes
import gc
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch

from flmm_core.common.plain_text import one_line
from flmm_core.requests.callbacks import Callbacks
from flmm_core.requests.chat_command import ChatCommand
from flmm_core.serving.queue import FairQueue
from flmm_core.serving.requests import (
    Limits,
    Mode,
    Picture,
    RefusedError,
    Reply,
    Request,
    Status,
    cancelled,
    refusing,
)
from flmm_core.serving.standing import WatchRequest, WatchWork
from flmm_core.types import GroundedAnswer

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
        callbacks: Callbacks | None = None,
    ) -> GroundedAnswer:
        """Answer and ground."""

    def refer(self, image: Any, phrases: Sequence[str], *, callbacks: Callbacks | None = None) -> GroundedAnswer:
        """Ground given phrases."""

    def describe(self) -> Mapping[str, str]:
        """What it is and where it runs, for people."""

    def device_memory(self) -> int:
        """Bytes that it has on a GPU; 0 without one."""


ChatBatch = Callable[[Any, Sequence[ChatCommand]], Iterator[GroundedAnswer | Exception]]
"""As :func:`flmm_core.chat.batching.chat_batch`."""


class GroundingServer:
    """Serves a pipeline. All methods may be called from any thread, but one at a time from those that change its state.

    Args:
        load: builds the pipeline, in the worker's thread.
        lost: told once, with the reason, when the worker's thread died; every request got its refusal before. Nothing can be
            served any more until it was unloaded and loaded again.
        chat_batch: answers several chat commands in one batch; None to answer them one by one.
        batch_size: most chat commands that are answered in one batch, if they wait.
    """

    def __init__(
        self,
        load: Callable[[], Pipeline],
        *,
        lost: Callable[[str], None],
        chat_batch: ChatBatch | None = None,
        batch_size: int = 1,
    ) -> None:
        self._load = load
        self._lost = lost
        self._chat_batch = chat_batch
        self._batch_size = batch_size if chat_batch is not None else 1
        self._changed = threading.Condition()
        self._queue = FairQueue()
        self._capacity = 0
        self._in_work: list[Request] = []
        self._serving = False
        self._ending = False
        self._stopped = RefusedError(Status.SHUTTING_DOWN, "the node is not active")
        self._standing: WatchWork | None = None
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
            capacity: requests that may wait; those in work do not count.
        """
        with self._changed:
            assert self._pipeline is not None, "load first"
            self._capacity = capacity
            self._serving = True

    def stop(self, timeout: float, reason: str) -> None:
        """Take no more requests, refuse those that wait, and let those in work finish; refuse them too if they take longer.

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
            self._changed.wait_for(lambda: not self._in_work, timeout)
            late = self._in_work
        for request in late:
            _abandon(request, self._stopped)

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
        return bool(self._in_work)

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
        request.callbacks.cancel()
        with self._changed:
            self._queue.remove(request)
        request.refuse(cancelled())

    def watch(self, standing: WatchRequest | None) -> None:
        """Work on a standing list whenever nothing else waits; None ends that."""
        with self._changed:
            if self._standing is not None:
                self._standing.cancel()
            self._standing = None if standing is None else WatchWork(standing, wanted=lambda: len(self._queue) > 0)
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
                if isinstance(work, WatchWork):
                    work.run(pipeline)
                else:
                    self._answer(pipeline, work)
                del work  # what is kept while nothing is to do is not freed
        except BaseException as error:
            self._die(f"cannot serve: {one_line(error)}")

    def _next(self) -> list[Request] | WatchWork | None:
        """End requests and take up the next, in one step: between the two they would be nowhere."""
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
                pause = None if self._standing is None else self._standing.pause()
                if pause == 0.0:
                    return self._standing
                self._changed.wait(pause)

    def _answer(self, pipeline: Pipeline, requests: Sequence[Request]) -> None:
        """Answer one request, or several that are chat commands."""
        looks: list[_Look] = []
        for request in requests:
            with _replying(request):
                looks.append(_Look.of(pipeline, request))
        if len(looks) > 1 and self._chat_batch is not None:
            outcomes = self._chat_batch(
                pipeline, [ChatCommand(look.image, look.request.words[0], **look.options) for look in looks]
            )
            for look, outcome in zip(looks, outcomes, strict=True):
                with _replying(look.request):
                    if isinstance(outcome, Exception):
                        raise outcome
                    look.finish(outcome)
            return
        for look in looks:
            with _replying(look.request):
                if look.request.mode == Mode.REFER:
                    look.finish(pipeline.refer(look.image, look.request.words, callbacks=look.request.callbacks))
                else:
                    look.finish(pipeline.chat(look.image, look.request.words[0], **look.options))

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


@dataclass(frozen=True)
class _Look:
    """A request in work, with its picture."""

    request: Request
    limits: Limits
    picture: Picture
    image: Any
    began: float
    fetched: float

    @classmethod
    def of(cls, pipeline: Pipeline, request: Request) -> _Look:
        """Fetch what belongs to a request; raises what its functions and the pipeline raise."""
        began = time.monotonic()
        limits, picture = request.limits(), request.picture()
        fetched = time.monotonic()
        return cls(request, limits, picture, pipeline.encode(picture.pixels), began, fetched)

    @property
    def options(self) -> dict[str, Any]:
        """Of a chat command."""
        limits = self.limits
        return {"max_new_tokens": limits.max_new_tokens, "max_phrases": limits.max_phrases, "callbacks": self.request.callbacks}

    def finish(self, answer: GroundedAnswer) -> None:
        """Reply."""
        self.request.finish(
            Reply(
                Status.ANSWERED,
                answer=answer,
                picture=self.picture,
                source=self.picture.source,
                began=self.began,
                fetching=self.fetched - self.began,
            )
        )


@contextmanager
def _replying(request: Request) -> Iterator[None]:
    """Refuse the request if something goes wrong inside the block."""
    try:
        with refusing():
            yield
    except RefusedError as refusal:
        request.refuse(refusal)


def _abandon(request: Request, refusal: RefusedError) -> None:
    """Refuse a request that is in work; its answer may be on its way just now, and is out then when this returns."""
    request.callbacks.cancel()
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
