"""The replicas of a fleet on Ray Serve: each is a :class:`GroundingServer` with a pipeline.

Ray starts, scales and replaces replicas; :mod:`flmm_fleet.front` gives them commands. The server of a replica handles its
commands, with exactly one reply for each.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict
from typing import Any

from ray import serve

from flmm_core.config import GroundingConfig
from flmm_core.images.files import read_image_bytes
from flmm_core.requests.callbacks import Callbacks, Stage
from flmm_core.serving.health import Health, HealthReport, Level
from flmm_core.serving.requests import CameraImage, Limits, Mode, RefusedError, Reply, Request, Status
from flmm_core.serving.server import GroundingServer
from flmm_core.serving.wire import WireCommand, answer_to_json, refusal_line
from flmm_fleet.front import KEEP_ALIVE, Line
from flmm_fleet.settings import FleetSettings

SHUTDOWN = 5.0
"""Seconds for the running command to finish when a replica is stopped."""


@serve.deployment(health_check_period_s=2.0, health_check_timeout_s=10.0, graceful_shutdown_timeout_s=SHUTDOWN)
class Replica:
    """One pipeline and its server.

    Args:
        config: of the pipeline, which is loaded here: the process that starts the fleet needs no model.
        settings: of the fleet.
    """

    def __init__(self, config: GroundingConfig, settings: FleetSettings) -> None:
        from flmm_core.chat.batching import chat_batch
        from flmm_core.pipeline import GroundingPipeline

        self._health = Health()
        self._trouble = ""
        self._settings = settings
        self._server = GroundingServer(
            lambda: GroundingPipeline.from_config(config),
            lost=self._on_trouble,
            hangs=self._on_trouble,
            chat_batch=chat_batch,
            batch_size=settings.batch,
        )
        self._facts = dict(self._server.load().result())
        self._health.loaded(self._facts)
        self._server.start(settings.commands, command_deadline=settings.command_deadline)
        self._health.enter("ready")

    def _on_trouble(self, reason: str) -> None:
        self._trouble = reason
        self._health.enter("failed" if reason else "ready", reason)

    def check_health(self) -> None:
        """Called periodically by Ray, which replaces the replica after an exception."""
        if (report := self._report()).level == Level.ERROR:
            raise RuntimeError(report.message)

    def _report(self) -> HealthReport:
        return self._health.report(
            waiting=self._server.waiting,
            working=self._server.working,
            capacity=self._settings.commands,
            camera=None,
            oldest_image=0.0,
            slow_answer=0.0,
            device_memory=self._server.device_memory(),
        )

    async def describe(self) -> Mapping[str, Any]:
        """Model and health."""
        report = self._report()
        health = {"level": report.level.name, "message": report.message, "values": report.values}
        return {"model": self._facts, "health": health, "process": os.getpid()}

    async def ground(self, command: WireCommand, image: bytes) -> AsyncIterator[Line]:
        """The lines of the reply to a command; if the iteration is cancelled, so is the command.

        A command that only waited here when the model failed is refused so that its client gives it to another replica.
        """
        loop = asyncio.get_running_loop()
        lines: asyncio.Queue[Line | Reply] = asyncio.Queue()

        def put(line: Line | Reply) -> None:
            loop.call_soon_threadsafe(lines.put_nowait, line)

        request = Request(
            Mode[command.mode],
            command.words,
            image=lambda: _decoded(image),
            reply=put,
            limits=lambda: Limits(command.max_new_tokens, command.max_phrases),
            client=command.client,
            callbacks=_Lines(put),
        )
        self._server.submit(request)
        began = False
        try:
            while True:
                try:
                    line = await asyncio.wait_for(lines.get(), KEEP_ALIVE)
                except TimeoutError:
                    line = {}
                if isinstance(line, Reply):
                    self._count(request, line)
                    elsewhere = self._trouble and not began and line.reason == self._trouble
                    yield refusal_line(Status.SHUTTING_DOWN, line.reason) if elsewhere else _last_line(line)
                    return
                began = began or "stage" in line
                yield line
        finally:
            if not request.replied.is_set():
                self._server.cancel(request)

    def _count(self, request: Request, reply: Reply) -> None:
        if reply.answer is None:
            self._health.refused(reply.status, reply.reason)
            return
        waited = {"waiting": reply.began - request.arrived, "total": time.monotonic() - request.arrived}
        self._health.answered({**waited, **asdict(reply.answer.seconds)})


class _Lines(Callbacks):
    """Forwards stages and text to the client."""

    def __init__(self, put: Callable[[Line], None]) -> None:
        self._put = put

    def on_stage(self, stage: Stage) -> None:
        self._put({"stage": stage})

    def on_text(self, text: str) -> None:
        self._put({"text": text})


def _decoded(content: bytes) -> CameraImage:
    """Decode an image when its command starts: only one at a time is in memory."""
    try:
        return CameraImage(read_image_bytes(content))
    except ValueError as error:
        raise RefusedError(Status.BAD_IMAGE, str(error)) from error


def _last_line(reply: Reply) -> Line:
    if reply.status == Status.ANSWERED and reply.answer is not None:
        return {"answer": answer_to_json(reply.answer)}
    return refusal_line(reply.status, reply.reason)
