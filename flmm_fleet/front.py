"""The HTTP server of a fleet: takes commands, gives each a place and a replica, and passes the lines of the reply on.

It knows neither Ray nor models. The format is that of :mod:`flmm_core.serving.wire`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Protocol, TypeAlias

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from uvicorn.protocols.http.h11_impl import H11Protocol

from flmm_core.common.plain_text import one_line
from flmm_core.serving.requests import Status
from flmm_core.serving.wire import WIRE_HEADER, WIRE_VERSION, WireCommand, refusal_line
from flmm_fleet.places import Places
from flmm_fleet.settings import FleetSettings
from flmm_fleet.uploads import Upload, UploadError, Uploads

KEEP_ALIVE = 0.5
"""Seconds without an event after which an empty line is sent: by a replica at work, and by this server to the client."""
_SILENCE = 10.0
"""Seconds without a line of a replica after which it counts as lost."""
_CONNECTIONS = 1000
"""Connections at once; more are closed unanswered."""
_HEADER_SECONDS = 30.0
"""For the header of a request; a connection without one is closed."""
_READ_SECONDS = 30.0
"""For which a reply may wait for its client, all its waits together; its connection is closed, so that its place is free."""

_GRACE = 1
"""Seconds for the replies in progress when the server stops; then their connections are closed."""

Line: TypeAlias = Mapping[str, Any]


class ReplyLines(Protocol):
    """The lines of a replica's reply, an asynchronous iterator; anything that it raises means that the replica was lost."""

    async def __anext__(self) -> Line:
        """The next line."""

    def cancel(self) -> None:
        """Stop the command; without effect after its end."""


class Replicas(Protocol):
    """The replicas behind the server."""

    def ground(self, command: WireCommand, image: bytes) -> ReplyLines:
        """Give a command to one of them."""

    async def describe(self) -> Mapping[str, Any]:
        """Model and health of one of them."""


class Front:
    """The endpoints ``POST /ground`` and ``GET /describe``.

    Args:
        replicas: answer.
        settings: of the fleet.
    """

    def __init__(self, replicas: Replicas, settings: FleetSettings) -> None:
        self._replicas = replicas
        self._uploads = Uploads(settings.max_image_pixels)
        self._places = Places(settings.largest * settings.commands)
        self._description: asyncio.Task[Response] | None = None
        routes = [
            Route("/ground", self._ground, methods=["POST"]),
            Route("/describe", self._describe, methods=["GET"]),
            Route("/{path:path}", _elsewhere, methods=["GET", "POST"]),
        ]
        self.app = Starlette(routes=routes)

    async def _ground(self, request: Request) -> Response:
        try:
            upload = await self._uploads.read(request)
        except UploadError as error:
            return _refused(error.status, str(error))
        except ClientDisconnect:
            return _refused(400, "the client left")
        return StreamingResponse(self._reply(upload), headers=_VERSION, media_type="application/x-ndjson")

    async def _describe(self, request: Request) -> Response:
        """The answer of a replica. Only one is asked at a time, on behalf of all clients that ask meanwhile."""
        if self._description is None or self._description.done():
            self._description = asyncio.ensure_future(self._ask_description())
        return await asyncio.shield(self._description)

    async def _ask_description(self) -> Response:
        try:
            async with asyncio.timeout(_SILENCE):
                return JSONResponse(dict(await self._replicas.describe()), headers=_VERSION)
        except Exception as error:
            return _refused(503, f"no replica answers ({one_line(error)})")

    async def _reply(self, upload: Upload) -> AsyncIterator[str]:
        """The lines of the reply; if the client leaves, the command is cancelled and its place is free."""
        client = upload.command.client
        if reason := self._places.take(client):
            yield _text(refusal_line(Status.BUSY, reason))
            return
        lines: ReplyLines | None = None
        try:
            lines = self._replicas.ground(upload.command, upload.image)
            del upload
            async for line in _in_time(lines):
                yield _text(line)
        except Exception as error:
            yield _text(refusal_line(Status.SHUTTING_DOWN, f"the replica was lost ({one_line(error)})"))
        finally:
            self._places.give_back(client)
            if lines is not None:
                lines.cancel()


async def _in_time(lines: ReplyLines) -> AsyncIterator[Line]:
    """The lines of a reply up to its last one, with empty ones while nothing comes.

    Raises:
        TimeoutError: nothing came for too long.
    """
    heard, coming = time.monotonic(), None
    try:
        while True:
            coming = coming or asyncio.ensure_future(lines.__anext__())
            await asyncio.wait({coming}, timeout=KEEP_ALIVE)
            if not coming.done():
                if time.monotonic() - heard > _SILENCE:
                    raise TimeoutError(f"no line of its reply for {_SILENCE:g} s")
                yield {}
                continue
            if coming.cancelled() or isinstance(coming.exception(), StopAsyncIteration):
                raise RuntimeError("its reply ended too early")
            heard, line, coming = time.monotonic(), coming.result(), None
            yield line
            if "answer" in line or "refused" in line:
                return
    finally:
        if coming is not None:
            coming.cancel()


async def _elsewhere(request: Request) -> Response:
    return _refused(404, f"expected POST /ground or GET /describe, got {request.method} {request.url.path}")


_VERSION = {WIRE_HEADER: WIRE_VERSION}


def _refused(status: int, reason: str) -> JSONResponse:
    return JSONResponse({"detail": reason}, status, headers=_VERSION)


def _text(line: Line) -> str:
    return json.dumps(line) + "\n"


class HttpServer:
    """Serves an application in a thread of its own.

    Args:
        app: ASGI.
        host: address to listen on.
        port: 0 for a free one.

    Raises:
        ValueError: the address cannot be used.
    """

    def __init__(self, app: Starlette, host: str, port: int) -> None:
        self._socket = _bound(host, port)
        self.address = f"http://{host}:{self._socket.getsockname()[1]}"
        config = uvicorn.Config(
            app, http=_Prompt, ws="none", lifespan="off", log_level="error", timeout_graceful_shutdown=3 * _GRACE
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), name="http", daemon=True)

    def start(self) -> None:
        """Answer requests from now on."""
        self._socket.listen(_CONNECTIONS)
        self._thread.start()

    def stop(self) -> None:
        """Close all connections, those with a reply in progress after a moment."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()


def _bound(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        raise ValueError(f"host and port: expected an address to listen on, got {host}:{port} ({error.strerror})") from error
    return bound


class _Prompt(H11Protocol):
    """Bounds the number of connections and their time.

    A connection is closed when no request begins for :data:`_HEADER_SECONDS`, or when its client leaves a reply unread for
    :data:`_READ_SECONDS`, also one that is finished.
    """

    _unread: asyncio.TimerHandle | None = None
    """Runs while anything of a reply waits for the client."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._reply, self._left = self.cycle, _READ_SECONDS  # what is left to this reply
        transport.set_write_buffer_limits(high=0)  # writing pauses while anything waits, and resumes when nothing does
        self._watch(None)
        if len(self.connections) > _CONNECTIONS:
            transport.abort()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._reply is not self.cycle:
            self._reply, self._left = self.cycle, _READ_SECONDS
        self._unread = self.loop.call_later(self._left, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._stop_unread()

    def _stop_unread(self) -> None:
        if self._unread is not None:
            self._left = self._unread.when() - self.loop.time()
            self._unread.cancel()
            self._unread = None

    def _watch(self, before: object) -> None:
        self._timer = self.loop.call_later(_HEADER_SECONDS, self._look, before)

    def _look(self, before: object) -> None:
        idle = self.cycle is None or self.cycle.response_complete
        if idle and self.cycle is before:
            self.transport.close()
        else:
            self._watch(self.cycle)

    def shutdown(self) -> None:
        super().shutdown()
        self.loop.call_later(_GRACE, self.transport.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self._stop_unread()
        super().connection_lost(exc)
