"""The replicas of a fleet on Ray Serve: each is a :class:`GroundingServer` with a pipeline, behind HTTP.

Ray starts, counts, scales and replaces replicas; what a replica does with a command, and that it replies once, is the server's.
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

from flmm_core.chat.batching import chat_batch
from flmm_core.config import GroundingConfig
from flmm_core.images.files import read_image_bytes
from flmm_core.pipeline import GroundingPipeline
from flmm_core.requests.callbacks import Callbacks, Stage
from flmm_core.serving.health import Health, HealthReport, Level
from flmm_core.serving.requests import Limits, Mode, Picture, Reply, Request, Status
from flmm_core.serving.server import GroundingServer
from flmm_core.serving.wire import WireCommand, answer_to_json
from flmm_fleet.settings import FleetSettings

APPLICATION = "flmm"
_ALIVE = 0.5
"""Seconds of silence after which a replica says that it is still at work."""
_STOPPING = 5.0
"""Seconds in which the command in work may finish when a replica ends."""

Load = Callable[[GroundingConfig], GroundingPipeline]


def start_fleet(config: GroundingConfig, load: Load, settings: FleetSettings) -> str:
    """Start Ray on this machine if need be, and the replicas; returns when they answer.

    Args:
        config: of each replica's pipeline.
        load: builds it; must be importable where the replicas run.
        settings: size of the fleet.

    Returns:
        Its address.
    """
    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
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
    serve.run(deployment.bind(config, load, settings), name=APPLICATION, route_prefix="/")
    return f"http://{settings.host}:{settings.port}"


def stop_fleet() -> None:
    """End all replicas, and the Ray that was started for them; what else a cluster serves goes on."""
    serve.delete(APPLICATION)
    ray.shutdown()


@serve.deployment(health_check_period_s=2.0, health_check_timeout_s=10.0, graceful_shutdown_timeout_s=_STOPPING)
class Replica:
    """One pipeline and its server.

    Args:
        config: of the pipeline.
        load: builds it.
        settings: how many commands may wait, and be answered together.
    """

    def __init__(self, config: GroundingConfig, load: Load, settings: FleetSettings) -> None:
        self._health = Health(camera=False)
        self._waiting = settings.waiting
        self._server = GroundingServer(
            lambda: load(config), lost=self._on_lost, chat_batch=chat_batch, batch_size=settings.batch
        )
        self._facts = dict(self._server.load().result())
        self._health.loaded(self._facts)
        self._server.start(settings.waiting)
        self._health.enter("ready")

    def _on_lost(self, reason: str) -> None:
        self._health.enter("failed", reason)

    def check_health(self) -> None:
        """Ray asks again and again, and replaces a replica that cannot serve any more."""
        if (report := self._report()).level == Level.ERROR:
            raise RuntimeError(report.message)

    def _report(self) -> HealthReport:
        return self._health.report(
            waiting=self._server.waiting,
            capacity=self._waiting,
            skipped=0,
            oldest_image=0.0,
            slow_answer=0.0,
            device_memory=self._server.device_memory(),
        )

    async def __call__(self, request: requests.Request) -> Response:
        """``POST /ground``: one command, see :mod:`flmm_core.serving.wire`. ``GET /describe``: what a replica runs."""
        asked = (request.method, request.url.path)
        if asked == ("GET", "/describe"):
            return JSONResponse(self._describe())
        if asked != ("POST", "/ground"):
            return _refused(404, f"expected POST /ground or GET /describe, got {' '.join(asked)}")
        async with request.form() as form:
            image, command = form.get("image"), form.get("command")
            if not isinstance(image, UploadFile) or not isinstance(command, str):
                return _refused(422, "expected a form of a file `image` and a text `command`, got another one")
            content = await image.read()
        try:
            wanted = WireCommand.from_json(command)
            pixels = await asyncio.to_thread(read_image_bytes, content)
        except ValueError as error:
            return _refused(422, str(error))
        return StreamingResponse(self._lines(wanted, Picture(pixels)), media_type="application/x-ndjson")

    def _describe(self) -> Mapping[str, Any]:
        report = self._report()
        health = {"level": report.level.name, "message": report.message, "values": report.values}
        return {"model": self._facts, "health": health, "process": os.getpid()}

    async def _lines(self, wanted: WireCommand, picture: Picture) -> AsyncIterator[str]:
        """What happens to a command, line by line; a client that leaves takes its command back."""
        loop = asyncio.get_running_loop()
        lines: asyncio.Queue[dict[str, Any] | Reply] = asyncio.Queue()

        def put(line: dict[str, Any] | Reply) -> None:
            loop.call_soon_threadsafe(lines.put_nowait, line)

        request = Request(
            Mode[wanted.mode],
            wanted.words,
            picture=lambda: picture,
            reply=put,
            limits=lambda: Limits(wanted.max_new_tokens, wanted.max_phrases),
            client=wanted.client,
            callbacks=_Lines(put),
        )
        self._server.submit(request)
        try:
            while True:
                try:
                    line = await asyncio.wait_for(lines.get(), _ALIVE)
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
    """Hands on what a client may see."""

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
