"""A standing list of phrases, grounded again and again on the newest picture. Knows no transport.

The model reads a picture now and then; between two of its passes the masks follow the pictures by optical flow.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from flmm_core.requests.callbacks import Callbacks
from flmm_core.serving.requests import Picture, RefusedError, Reply, Status, refusing
from flmm_core.spatial.tracking import MaskTracker
from flmm_core.types import GroundedAnswer


class ReferringPipeline(Protocol):
    """What a standing list needs of a pipeline."""

    def encode(self, image: np.ndarray) -> Any:
        """A handle of ``[H, W, 3]`` uint8 RGB."""

    def refer(self, image: Any, phrases: Sequence[str], *, callbacks: Callbacks | None = None) -> GroundedAnswer:
        """Ground given phrases."""


@dataclass(frozen=True)
class WatchRequest:
    """What is watched, and who is told."""

    phrases: tuple[str, ...]
    picture: Callable[[], Picture]
    """Gives the newest picture, the same array as before if there is no newer one; may raise :class:`RefusedError`."""
    result: Callable[[Reply], None]
    """Takes each result, in the worker's thread; a refusal once, until its status changes."""
    period: Callable[[], float]
    """Seconds between the beginnings of two results, at least."""
    refresh: Callable[[], float]
    """Seconds between the beginnings of two passes of the model; between them masks are tracked."""


class WatchWork(Callbacks):
    """The work on a standing list, one picture at a time.

    Args:
        standing: the list.
        wanted: whether somebody waits for the worker: a pass of the model is given up then, and begun anew afterwards.
    """

    def __init__(self, standing: WatchRequest, *, wanted: Callable[[], bool]) -> None:
        self._standing = standing
        self._wanted = wanted
        self._due = self._refresh_due = 0.0
        self._tracker: MaskTracker | None = None
        self._pixels: np.ndarray | None = None
        self._refused: Status | None = None

    def cancelled(self) -> bool:
        """Commands go first."""
        return super().cancelled() or self._wanted()

    def pause(self) -> float:
        """Seconds until there is something to do; 0 if there is."""
        return max(0.0, self._due - time.monotonic())

    def run(self, pipeline: ReferringPipeline) -> None:
        """Look at the newest picture, if there is a new one, and tell the result."""
        began = time.monotonic()
        self._due = began + self._standing.period()
        try:
            with refusing():
                reply = self._look(pipeline, began)
        except RefusedError as refusal:
            if refusal.status == Status.CANCELLED:
                self._due = began
                return
            if refusal.status == self._refused:
                return
            self._refused = refusal.status
            reply = Reply(refusal.status, refusal.reason, source=refusal.source, began=began)
        if reply is not None and not super().cancelled():
            self._standing.result(reply)

    def _look(self, pipeline: ReferringPipeline, began: float) -> Reply | None:
        picture = self._standing.picture()
        fetching = time.monotonic() - began
        if picture.pixels is self._pixels:
            return None
        answer = None
        if self._tracker is not None and began < self._refresh_due:
            answer = self._tracker.follow(picture.pixels)
        tracked = answer is not None
        if answer is None:
            answer = pipeline.refer(pipeline.encode(picture.pixels), self._standing.phrases, callbacks=self)
            self._tracker = MaskTracker(picture.pixels, answer)
            self._refresh_due = began + self._standing.refresh()
        self._pixels, self._refused = picture.pixels, None
        return Reply(
            Status.ANSWERED,
            answer=answer,
            picture=picture,
            source=picture.source,
            began=began,
            fetching=fetching,
            tracked=tracked,
        )
