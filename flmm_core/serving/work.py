"""Requests in progress: fetch the image, run the pipeline, send the reply. Whatever fails becomes a refusal of its request."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from flmm_core.requests.chat_command import ChatCommand
from flmm_core.serving.interface import ChatBatch, Pipeline
from flmm_core.serving.requests import CameraImage, Limits, Mode, RefusedError, Reply, Request, Status, refusing
from flmm_core.types import GroundedAnswer


def answer_requests(pipeline: Pipeline, requests: Sequence[Request], chat_batch: ChatBatch | None) -> None:
    """Answer one request, or several that are all chat commands; each gets its reply before this returns.

    Args:
        pipeline: runs the model.
        requests: more than one only with ``chat_batch``.
        chat_batch: answers several chat commands in one batch.
    """
    prepared: list[_Prepared] = []
    for request in requests:
        with _refusing_on_error(request):
            prepared.append(_Prepared.of(pipeline, request))
    if len(prepared) > 1:
        assert chat_batch is not None
        commands = [ChatCommand(one.encoded, one.request.words[0], **one.options) for one in prepared]
        for one, outcome in zip(prepared, chat_batch(pipeline, commands), strict=True):
            with _refusing_on_error(one.request):
                if isinstance(outcome, Exception):
                    raise outcome
                one.finish(outcome)
        return
    for one in prepared:
        with _refusing_on_error(one.request):
            if one.request.mode == Mode.REFER:
                one.finish(pipeline.refer(one.encoded, one.request.words, callbacks=one.request.callbacks))
            else:
                one.finish(pipeline.chat(one.encoded, one.request.words[0], **one.options))


@dataclass(frozen=True)
class _Prepared:
    """A request in progress, with its image encoded."""

    request: Request
    limits: Limits
    image: CameraImage
    encoded: Any
    """What the pipeline made of the image."""
    began: float
    """When the image was fetched, in seconds on the monotonic clock, as ``fetched``."""
    fetched: float

    @classmethod
    def of(cls, pipeline: Pipeline, request: Request) -> _Prepared:
        """Fetch and encode the image of a request; raises what its functions and the pipeline raise."""
        began = time.monotonic()
        limits, image = request.limits(), request.image()
        fetched = time.monotonic()
        return cls(request, limits, image, pipeline.encode(image.pixels), began, fetched)

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of a chat command."""
        limits = self.limits
        return {"max_new_tokens": limits.max_new_tokens, "max_phrases": limits.max_phrases, "callbacks": self.request.callbacks}

    def finish(self, answer: GroundedAnswer) -> None:
        """Send the answer."""
        self.request.finish(
            Reply(
                Status.ANSWERED,
                answer=answer,
                image=self.image,
                source=self.image.source,
                began=self.began,
                fetching=self.fetched - self.began,
            )
        )


@contextmanager
def _refusing_on_error(request: Request) -> Iterator[None]:
    """Refuse the request if the block raises."""
    try:
        with refusing():
            yield
    except RefusedError as refusal:
        request.refuse(refusal)
