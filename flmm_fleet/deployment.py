"""The replicas of a fleet on Ray Serve: each is a :class:`GroundingServer` with a pipeline, behind HTTP.

Ray starts, scales and replaces replicas. The server of a replica handles its commands, with exactly one reply for each.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict
from typing import Any

import ray
from ray import serve
from starlette import requests
from starlette.datastructures import UploadFile
from starlette.responses import JSONResponse, Response, StreamingResponse

from flmm_core.config import GroundingConfig
from flmm_core.images.files import read_image_bytes
from flmm_core.requests.callbacks import Callbacks, Stage
from flmm_core.serving.health import Health, HealthReport, Level
from flmm_core.serving.requests import CameraImage, Limits, Mode, Reply, Request, Status
from flmm_core.serving.server import GroundingServer
from flmm_core.serving.wire import WireCommand, answer_to_json
from flmm_fleet.settings import FleetSettings

APPLICATION = "flmm"
_KEEP_ALIVE = 0.5
"""Seconds without an event after which a replica sends an empty line: it is still working."""
_PROXY_START = "60"
"""Seconds for Ray Serve's HTTP proxy to start: by default 5, which a busy machine exceeds while it imports Ray."""
_SHUTDOWN = 5.0
"""Seconds for the running command to finish when a replica is stopped."""


def start_fleet(config: GroundingConfig, settings: FleetSettings) -> str:
    """Start Ray on this machine unless it runs, and the replicas; returns when they are ready.

    Args:
        config: of each replica's pipeline.
        settings: size of the fleet.

    Returns:
        Address of the fleet, for instance ``http://127.0.0.1:8000``.
    """
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        os.environ.setdefault("RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S", _PROXY_START)
        ray.init(include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": settings.host, "port": settings.port})
    size: dict[str, Any] = {"num_replicas": settings.replicas}
    if settings.most_replicas > settings.replicas:
        size = {
            "autoscaling_config": {
                "min_replicas": settings.replicas,
                "max_replicas": settings.most_replicas,
                "target_ongoing_requests": settings.batch + 1,
            }
        }
    deployment = Replica.options(  # type: ignore[attr-defined]
        max_ongoing_requests=settings.waiting + settings.batch,
        ray_actor_options={"num_cpus": 1, "num_gpus": settings.gpus},
        **size,
    )
    serve.run(deployment.bind(config, settings), name=APPLICATION, route_prefix="/")
    return f"http://{settings.host}:{settings.port}"


def stop_fleet() -> None:
    """Stop all replicas and the Ray that was started for them; other applications of a cluster keep running."""
    serve.delete(APPLICATION)
    ray.shutdown()


@serve.deployment(health_check_period_s=2.0, health_check_timeout_s=10.0, graceful_shutdown_timeout_s=_SHUTDOWN)
class Replica:
    """One pipeline and its server.

    Args:
        config: of the pipeline, which is loaded here: the process that starts the fleet needs no model.
        settings: how many commands may wait, and be answered in one batch.
    """

    def __init__(self, config: GroundingConfig, settings: FleetSettings) -> None:
        from flmm_core.chat.batching import chat_batch
        from flmm_core.pipeline import GroundingPipeline

        self._health = Health()
        self._waiting = settings.waiting
        self._server = GroundingServer(
            lambda: GroundingPipeline.from_config(config),
            lost=self._on_lost,
            chat_batch=chat_batch,
            batch_size=settings.batch,
        )
        self._facts = dict(self._server.load().result())
        self._health.loaded(self._facts)
        self._server.start(settings.waiting)
        self._health.enter("ready")

    def _on_lost(self, reason: str) -> None:
        self._health.enter("failed", reason)

    def check_health(self) -> None:
        """Called periodically by Ray, which replaces the replica after an exception."""
        if (report := self._report()).level == Level.ERROR:
            raise RuntimeError(report.message)

    def _report(self) -> HealthReport:
        return self._health.report(
            waiting=self._server.waiting,
            capacity=self._waiting,
            camera=None,
            oldest_image=0.0,
            slow_answer=0.0,
            device_memory=self._server.device_memory(),
        )

    async def __call__(self, request: requests.Request) -> Response:
        """``POST /ground``: one command, see :mod:`flmm_core.serving.wire`. ``GET /describe``: model and health."""
        endpoint = (request.method, request.url.path)
        if endpoint == ("GET", "/describe"):
            return JSONResponse(self._describe())
        if endpoint != ("POST", "/ground"):
            return _refused(404, f"expected POST /ground or GET /describe, got {' '.join(endpoint)}")
        async with request.form() as form:
            image, text = form.get("image"), form.get("command")
            if not isinstance(image, UploadFile) or not isinstance(text, str):
                return _refused(422, "expected a form of a file `image` and a text `command`, got another one")
            content = await image.read()
        try:
            command = WireCommand.from_json(text)
            pixels = await asyncio.to_thread(read_image_bytes, content)
        except ValueError as error:
            return _refused(422, str(error))
        return StreamingResponse(self._lines(command, CameraImage(pixels)), media_type="application/x-ndjson")

    def _describe(self) -> Mapping[str, Any]:
        report = self._report()
        health = {"level": report.level.name, "message": report.message, "values": report.values}
        return {"model": self._facts, "health": health, "process": os.getpid()}

    async def _lines(self, command: WireCommand, image: CameraImage) -> AsyncIterator[str]:
        """JSON lines about the progress of a command; if the client disconnects, the command is cancelled."""
        loop = asyncio.get_running_loop()
        lines: asyncio.Queue[dict[str, Any] | Reply] = asyncio.Queue()

        def put(line: dict[str, Any] | Reply) -> None:
            loop.call_soon_threadsafe(lines.put_nowait, line)

        request = Request(
            Mode[command.mode],
            command.words,
            image=lambda: image,
            reply=put,
            limits=lambda: Limits(command.max_new_tokens, command.max_phrases),
            client=command.client,
            callbacks=_Lines(put),
        )
        self._server.submit(request)
        try:
            while True:
                try:
                    line = await asyncio.wait_for(lines.get(), _KEEP_ALIVE)
                except TimeoutError:
                    line = {}
                if isinstance(line, Reply):
                    self._count(request, line)
                    yield json.dumps(_last_line(line)) + "\n"
                    return
                yield json.dumps(line) + "\n"
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

    def __init__(self, put: Callable[[dict[str, Any]], None]) -> None:
        self._put = put

    def on_stage(self, stage: Stage) -> None:
        self._put({"stage": stage})

    def on_text(self, text: str) -> None:
        self._put({"text": text})


def _refused(status: int, reason: str) -> JSONResponse:
    return JSONResponse({"detail": reason}, status)


def _last_line(reply: Reply) -> dict[str, Any]:
    if reply.status == Status.ANSWERED and reply.answer is not None:
        return {"answer": answer_to_json(reply.answer)}
    return {"refused": reply.status.name, "reason": reply.reason}
