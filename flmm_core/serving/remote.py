"""A client of a fleet with the interface of a pipeline: commands go out over HTTP, answers come back as the same types.

A command depends on nothing but its image and its words. If the replica that processes it dies, the command is sent again, to
another replica, and the caller still gets exactly one answer.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx
import numpy as np

from flmm_core.common.plain_text import one_line
from flmm_core.errors import CommandCancelledError, CommandError, MemoryFullError
from flmm_core.requests.callbacks import Callbacks
from flmm_core.serving.requests import FAILED, UNUSABLE, Mode, Status
from flmm_core.serving.wire import WIRE_HEADER, WIRE_VERSION, WireCommand, answer_from_json, image_bytes
from flmm_core.types import GroundedAnswer

PATIENCE = 30.0
"""Seconds for which a command is repeated while no replica answers it."""
_PAUSE = 0.5
"""Seconds before each repetition. It does not grow: a client that waits keeps its turn at the fleet by asking again."""
_SILENCE = httpx.Timeout(10.0)
"""Timeout between two lines of a reply: a replica at work sends several per second."""
_REFUSED = (httpx.codes.UNPROCESSABLE_ENTITY, httpx.codes.REQUEST_ENTITY_TOO_LARGE)
"""HTTP statuses of a command that the fleet does not take."""
_AGAIN = (Status.BUSY, Status.SHUTTING_DOWN)
"""Refusals after which another replica may still answer."""
_Part = TypeVar("_Part")


class FleetError(RuntimeError):
    """The fleet cannot be reached, or its reply has an unexpected form."""


@dataclass(frozen=True)
class RemoteImage:
    """An image as it is sent to the fleet."""

    content: bytes
    """PNG."""


class RemotePipeline:
    """A :class:`~flmm_core.serving.interface.Pipeline` that runs in a fleet.

    Args:
        server: address of the fleet, for instance ``http://fleet.local:8000``.
        patience: seconds for which a command is repeated while no replica answers it.
    """

    def __init__(self, server: str, *, patience: float = PATIENCE) -> None:
        try:
            known = httpx.URL(server).scheme in ("http", "https")
        except httpx.InvalidURL:
            known = False
        if not known:
            raise ValueError(f"server: expected an address like http://fleet.local:8000, got {server!r}")
        self._server = server.rstrip("/")
        self._patience = patience
        self._name = uuid.uuid4().hex
        self._client = httpx.Client(timeout=_SILENCE, headers={WIRE_HEADER: WIRE_VERSION})

    def close(self) -> None:
        """Close the HTTP connections."""
        self._client.close()

    def encode(self, image: np.ndarray) -> RemoteImage:
        """Compress ``[H, W, 3]`` uint8 RGB as PNG, without loss."""
        return RemoteImage(image_bytes(image))

    def chat(
        self,
        image: RemoteImage,
        text: str,
        *,
        max_new_tokens: int | None = None,
        max_phrases: int | None = None,
        callbacks: Callbacks | None = None,
    ) -> GroundedAnswer:
        """Answer and ground; see :meth:`flmm_core.pipeline.GroundingPipeline.chat`.

        Raises:
            CommandError: the words cannot be used.
            CommandCancelledError: ``callbacks`` cancelled the command.
            MemoryFullError: the replica has too little memory left.
            FleetError: no replica answered.
        """
        command = WireCommand(Mode.CHAT.name, (text,), self._name, max_new_tokens, max_phrases)
        return self._answer(image, command, callbacks or Callbacks())

    def refer(self, image: RemoteImage, phrases: Sequence[str], *, callbacks: Callbacks | None = None) -> GroundedAnswer:
        """Ground given phrases; raises what :meth:`chat` does."""
        return self._answer(image, WireCommand(Mode.REFER.name, tuple(phrases), self._name), callbacks or Callbacks())

    def set_thresholds(self, **thresholds: float) -> None:
        """No effect: the thresholds are those of the replicas."""

    def describe(self) -> Mapping[str, str]:
        """Description of the model, from one of the replicas.

        Raises:
            FleetError: no fleet answers at this address.
        """
        try:
            response = self._client.get(f"{self._server}/describe")
            response.raise_for_status()
            self._check_version(response)
            return {"server": self._server, **response.json()["model"]}
        except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
            raise FleetError(f"server {self._server}: expected a fleet of `flmm fleet`, got {_reason(error)}") from error

    def device_memory(self) -> int:
        """Always 0: the GPUs are those of the replicas."""
        return 0

    def _answer(self, image: RemoteImage, command: WireCommand, callbacks: Callbacks) -> GroundedAnswer:
        limit = time.monotonic() + self._patience
        while True:
            try:
                return self._try(image, command, callbacks)
            except (httpx.HTTPError, _TryAgainError) as error:
                if time.monotonic() + _PAUSE > limit:
                    reason = f"no answer for {self._patience:g} s ({_reason(error)})"
                    raise FleetError(f"server {self._server}: expected an answer, got {reason}") from error
            if callbacks.cancelled():
                raise CommandCancelledError("command: cancelled before a replica took it")
            time.sleep(_PAUSE)

    def _check_version(self, response: httpx.Response) -> None:
        """Refuse a fleet of another version.

        Raises:
            FleetError: says which side to update.
        """
        if (got := response.headers.get(WIRE_HEADER)) != WIRE_VERSION:
            found = f"{got[:20]}: update the older of robot and fleet" if got else "one without: update the fleet"
            raise FleetError(
                f"server {self._server}: expected a fleet with version {WIRE_VERSION} of the commands, got {found}"
            )

    def _try(self, image: RemoteImage, command: WireCommand, callbacks: Callbacks) -> GroundedAnswer:
        form = {"data": {"command": command.to_json()}, "files": {"image": ("image.png", image.content, "image/png")}}
        with self._client.stream("POST", f"{self._server}/ground", **form) as response:  # type: ignore[arg-type]
            if response.is_success or response.status_code in _REFUSED:
                self._check_version(response)
            if response.status_code in _REFUSED:
                raise CommandError(f"command: {_detail(response.read())}")
            if not response.is_success:
                raise _TryAgainError(f"HTTP {response.status_code}")
            for line in self._lines(response):
                if callbacks.cancelled():
                    raise CommandCancelledError("command: cancelled")  # closing the stream stops the replica
                if "answer" in line:
                    return self._read(answer_from_json, line["answer"])
                if "refused" in line:
                    raise self._read(_refusal, line)
                if "stage" in line:
                    callbacks.on_stage(line["stage"])
                if "text" in line:
                    callbacks.on_text(line["text"])
        raise _TryAgainError("a reply that ends too early")

    def _lines(self, response: httpx.Response) -> Iterator[dict[str, Any]]:
        for text in response.iter_lines():
            try:
                line = json.loads(text)
            except ValueError as error:  # the replica died while it was sending
                raise _TryAgainError("an incomplete reply") from error
            yield self._read(dict, line)

    def _read(self, read: Callable[[Any], _Part], part: Any) -> _Part:
        """Read a part of a reply; what cannot be read is no fault of the command."""
        try:
            return read(part)
        except Exception as error:
            reason = f"expected a reply of version {WIRE_VERSION}, got one that cannot be read ({_reason(error)})"
            raise FleetError(f"server {self._server}: {reason}") from error


class _TryAgainError(Exception):
    """This replica did not answer, but another one may."""


def _refusal(line: Mapping[str, Any]) -> Exception:
    """The error that a pipeline would raise for this refusal."""
    status, reason = Status[line["refused"]], str(line["reason"])
    if status in _AGAIN:
        return _TryAgainError(reason)
    if status in (Status.BAD_COMMAND, Status.BAD_IMAGE):
        return CommandError(reason.removeprefix(UNUSABLE))
    if status == Status.OUT_OF_MEMORY:
        return MemoryFullError(reason)
    if status == Status.CANCELLED:
        return CommandCancelledError(reason)
    return FleetError(reason.removeprefix(FAILED))


def _detail(content: bytes) -> str:
    try:
        return one_line(ValueError(str(json.loads(content)["detail"])))
    except (ValueError, KeyError, TypeError):
        return "the server refused the command"


def _reason(error: Exception) -> str:
    return one_line(error) if str(error) else type(error).__name__
