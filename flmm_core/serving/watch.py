"""A watch list: phrases that are grounded again and again on the newest image. Independent of any transport.

The model processes an image now and then; between two of its passes, optical flow moves the masks along with the images.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from flmm_core.requests.callbacks import Callbacks
from flmm_core.serving.interface import Pipeline
from flmm_core.serving.requests import CameraImage, RefusedError, Reply, Status, refusing
from flmm_core.spatial.tracking import MaskTracker


@dataclass(frozen=True)
class WatchRequest:
    """A watch list, where its images come from and where its results go."""

    phrases: tuple[str, ...]
    image: Callable[[], CameraImage]
    """Returns the newest image, with the same array as before if there is no newer one; may raise :class:`RefusedError`."""
    result: Callable[[Reply], None]
    """Called with each result, in the worker's thread; with a refusal only when its status differs from the last one."""
    period: Callable[[], float]
    """Minimum seconds between the starts of two results."""
    refresh: Callable[[], float]
    """Seconds between the starts of two passes of the model; between them masks are tracked."""


class WatchWork(Callbacks):
    """Processes a watch list, one image at a time.

    Args:
        request: the watch list.
        preempted: whether a command is waiting: a pass of the model is then cancelled, and the next one goes on to its end,
            so that there are results however often commands come.
    """

    def __init__(self, request: WatchRequest, *, preempted: Callable[[], bool]) -> None:
        self._request = request
        self.phrases = request.phrases
        self._preempted = preempted
        self._due = self._refresh_due = 0.0
        self._interrupted = False
        """The last pass of the model was cancelled by a command."""
        self._late: RefusedError | None = None
        """Why the pass in progress is given up."""
        self._tracker: MaskTracker | None = None
        self._pixels: np.ndarray | None = None
        self._refused: Status | None = None

    def cancelled(self) -> bool:
        """Also true while a command is waiting: commands have priority, but do not interrupt two passes in a row."""
        preempted = not self._interrupted and self._preempted()
        return super().cancelled() or self._late is not None or preempted

    def abort(self, refusal: RefusedError) -> None:
        """Give up the pass in progress, and report this refusal; the next pass follows."""
        self._late = refusal

    def pause(self) -> float:
        """Seconds until the next image is due; 0 if it is due now."""
        return max(0.0, self._due - time.monotonic())

    def run(self, pipeline: Pipeline) -> None:
        """Process the newest image, if it is a new one, and report the result."""
        began = time.monotonic()
        self._due, self._late = began + self._request.period(), None
        try:
            with refusing():
                reply = self._process(pipeline, began)
        except RefusedError as error:
            refusal = self._late or error
            if refusal.status == Status.CANCELLED:
                self._due, self._interrupted = began, True
                return
            if refusal.status == self._refused:
                return
            self._refused = refusal.status
            reply = Reply(refusal.status, refusal.reason, source=refusal.source, began=began)
        if reply is not None and not super().cancelled():
            self._request.result(reply)

    def _process(self, pipeline: Pipeline, began: float) -> Reply | None:
        image = self._request.image()
        fetching = time.monotonic() - began
        if image.pixels is self._pixels:
            return None
        answer = None
        if self._tracker is not None and began < self._refresh_due:
            answer = self._tracker.follow(image.pixels)
        tracked = answer is not None
        if answer is None:
            answer = pipeline.refer(pipeline.encode(image.pixels), self._request.phrases, callbacks=self)
            self._interrupted = False
            self._tracker = MaskTracker(image.pixels, answer)
            self._refresh_due = began + self._request.refresh()
        self._pixels, self._refused = image.pixels, None
        return Reply(
            Status.ANSWERED,
            answer=answer,
            image=image,
            source=image.source,
            began=began,
            fetching=fetching,
            tracked=tracked,
        )
