"""Reads the form of a command from an HTTP request, within bounds of size, time and pixels; decodes nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from flmm_core.images.files import sent_image_size
from flmm_core.serving.wire import WIRE_HEADER, WIRE_VERSION, WireCommand

_SECONDS = 30.0
"""For the whole body of a request."""
_HELD = 1 << 29
"""Bytes of bodies that are being received, of all requests together."""
_COMMAND_BYTES = 1 << 18
_FORM = "expected a form of a file `image` and a text `command`"

logging.getLogger("python_multipart").setLevel(logging.ERROR)  # its warnings go to the client, in UploadError


class UploadError(Exception):
    """A request that is no command: HTTP status and reason."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Upload:
    """A command as it was sent."""

    command: WireCommand
    image: bytes
    """A PNG or JPEG file, of which only the header was read."""


class Uploads:
    """Receives commands.

    Args:
        max_image_pixels: images with more are refused by their header.
    """

    def __init__(self, max_image_pixels: int) -> None:
        self._most_pixels = max_image_pixels
        self._most_bytes = 3 * max_image_pixels + (1 << 20)
        """A PNG of noise, which cannot be compressed, is hardly larger than its pixels."""
        self._held = 0

    async def read(self, request: Request) -> Upload:
        """Receive a command.

        Raises:
            UploadError: it is none, or is outside the bounds.
            ClientDisconnect: the client left.
        """
        version = request.headers.get(WIRE_HEADER, WIRE_VERSION)
        if version != WIRE_VERSION:
            reason = f"expected version {WIRE_VERSION} of the commands, got {version[:20]}: update the older of robot and fleet"
            raise UploadError(422, reason)
        form = await _parsed(request, await self._body(request))
        image, text = form.get("image"), form.get("command")
        if not isinstance(image, UploadFile) or not isinstance(text, str):
            raise UploadError(422, f"{_FORM}, got another one")
        content = await image.read()
        try:
            command = WireCommand.from_json(text)
            height, width = sent_image_size(content)
        except ValueError as error:
            raise UploadError(422, str(error)) from error
        if width * height > self._most_pixels:
            most = f"expected at most {self._most_pixels} pixels (--max-image-pixels)"
            raise UploadError(422, f"image of {width}x{height} is too large: {most}")
        return Upload(command, content)

    async def _body(self, request: Request) -> bytes:
        """The whole body."""
        if int(request.headers.get("content-length", 0)) > self._most_bytes:
            raise self._too_large()
        body = bytearray()
        try:
            async with asyncio.timeout(_SECONDS):
                async for part in request.stream():
                    if len(body) + len(part) > self._most_bytes:
                        raise self._too_large()
                    if self._held + len(part) > _HELD:
                        raise UploadError(503, "busy: too many images are being received")
                    body += part
                    self._held += len(part)
        except TimeoutError as error:
            raise UploadError(408, f"expected the whole command within {_SECONDS:g} s, got {len(body)} bytes of it") from error
        finally:
            self._held -= len(body)
        return bytes(body)

    def _too_large(self) -> UploadError:
        return UploadError(
            413, f"expected a command of at most {self._most_bytes} bytes (--max-image-pixels), got a larger one"
        )


class _InMemory(MultiPartParser):
    spool_max_size = 1 << 62  # the body is in memory already; no temporary files


async def _parsed(request: Request, body: bytes) -> FormData:
    async def stream() -> AsyncGenerator[bytes, None]:
        yield body

    if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
        raise UploadError(422, f"{_FORM} (multipart/form-data), got another one")
    try:
        return await _InMemory(request.headers, stream(), max_files=1, max_fields=1, max_part_size=_COMMAND_BYTES).parse()
    except (MultiPartException, HTTPException, ValueError, LookupError) as error:
        raise UploadError(422, f"{_FORM}, got one that cannot be read ({getattr(error, 'message', error)})") from error
