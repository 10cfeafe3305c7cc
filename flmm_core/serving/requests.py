"""Requests to a model and replies to them: types, statuses, checks. Independent of models and of any transport."""

from __future__ import annotations

import threading
import time
import unicodedata
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

import numpy as np

from flmm_core.common.plain_text import one_line
from flmm_core.errors import CommandCancelledError, CommandError, MemoryFullError
from flmm_core.requests.callbacks import Callbacks
from flmm_core.requests.chat_command import check_limits
from flmm_core.types import GroundedAnswer

UNUSABLE, FAILED = "the command cannot be used: ", "the model failed: "
"""Prefixes of a refusal's reason: the command is at fault, or the model is."""


class Status(IntEnum):
    """Outcome of a command."""

    ANSWERED = 0
    NO_IMAGE = 1
    IMAGE_TOO_OLD = 2
    BAD_IMAGE = 3
    BUSY = 4
    EMPTY_COMMAND = 5
    COMMAND_TOO_LONG = 6
    BAD_COMMAND = 7
    MODEL_FAILURE = 8
    SHUTTING_DOWN = 9
    OUT_OF_MEMORY = 10
    CANCELLED = 11


class Mode(IntEnum):
    """Kind of request."""

    CHAT = 0
    """Generate an answer, and ground its phrases."""
    REFER = 1
    """Ground given phrases; nothing is generated."""
    WATCH = 2
    """Ground a watch list again and again."""


class RefusedError(Exception):
    """A command that gets no answer: its status, the reason in one sentence, and the source of its image, if one was found."""

    def __init__(self, status: Status, reason: str, source: Any = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.source = source


@dataclass(frozen=True)
class CameraImage:
    """The image that a command is about."""

    pixels: np.ndarray
    """``[H, W, 3]`` uint8 RGB."""
    source: Any = None
    """What its sender knows about it, for instance its header; passed on to the reply unchanged."""


@dataclass(frozen=True)
class Reply:
    """The one reply to a command."""

    status: Status
    reason: str = ""
    """Why the command was refused, in one sentence; empty if it was answered."""
    answer: GroundedAnswer | None = None
    """None if the command was refused."""
    image: CameraImage | None = None
    """The image of the answer; None if the command was refused."""
    source: Any = None
    """Source of the image, also of one that was refused."""
    began: float = 0.0
    """When the worker started on the command, in seconds on the monotonic clock; 0 if it never did."""
    fetching: float = 0.0
    """Seconds for fetching and reading the image."""
    tracked: bool = False
    """The masks follow from those of an earlier image by optical flow; the model has not processed this one."""


@dataclass(frozen=True)
class Limits:
    """Limits of one answer; None: as the pipeline is configured. Raises CommandError for values out of range."""

    max_new_tokens: int | None = None
    max_phrases: int | None = None

    def __post_init__(self) -> None:
        check_limits(max_new_tokens=self.max_new_tokens, max_phrases=self.max_phrases)


class Request:
    """A command, with the source of its image and the destination of its reply. It gets exactly one reply.

    Args:
        mode: CHAT or REFER.
        words: cleaned by :func:`clean_text`: the question, or the phrases of refer mode.
        image: returns the image when the command starts, in the worker's thread; may raise :class:`RefusedError`.
        reply: sends the reply, in any thread. If it raises, it is called again with a refusal that gives the reason.
        limits: returns the limits of the answer when the command starts; may raise :class:`RefusedError`.
        client: identifies the client; clients are served in turn, and all requests with an equal key share one turn.
        callbacks: receives progress, and can cancel the command.
    """

    def __init__(
        self,
        mode: Mode,
        words: Sequence[str],
        *,
        image: Callable[[], CameraImage],
        reply: Callable[[Reply], None],
        limits: Callable[[], Limits] = Limits,
        client: Hashable = None,
        callbacks: Callbacks | None = None,
    ) -> None:
        self.mode = mode
        self.words = tuple(words)
        self.image = image
        self.limits = limits
        self.client = client
        self.callbacks = callbacks or Callbacks()
        self.arrived = time.monotonic()
        """When the request was made, in seconds on the monotonic clock."""
        self.replied = threading.Event()
        """Set when the reply has been sent."""
        self._reply = reply
        self._unclaimed = threading.Lock()

    def finish(self, reply: Reply) -> bool:
        """Reply, unless the command already has its reply. Thread-safe.

        Returns:
            Whether this call replied.
        """
        if not self._unclaimed.acquire(blocking=False):
            return False
        try:
            self._reply(reply)
        except Exception as error:
            reason = f"the answer cannot be sent: {one_line(error)}"
            with suppress(Exception):  # nothing can be sent to this client; the server must go on
                self._reply(Reply(Status.MODEL_FAILURE, reason, source=reply.source, began=reply.began))
        finally:
            self.replied.set()
        return True

    def refuse(self, refusal: RefusedError) -> bool:
        """:meth:`finish` with a refusal."""
        return self.finish(Reply(refusal.status, refusal.reason, source=refusal.source))

    def abort(self, refusal: RefusedError) -> None:
        """:meth:`refuse`, then cancel: in this order, as the worker refuses what was cancelled with a reason of its own."""
        self.refuse(refusal)
        self.callbacks.cancel()


def clean_text(text: str, max_length: int) -> str:
    """Clean a command for the model: control characters become spaces, runs of white space one space.

    Raises:
        RefusedError: nothing visible is left, or the text is longer than ``max_length`` characters.
    """
    if len(text) > max_length:
        reason = f"the command is too long: expected at most {max_length} characters (max_command_length), got {len(text)}"
        raise RefusedError(Status.COMMAND_TOO_LONG, reason)
    categories = [unicodedata.category(sign) for sign in text]
    words = " ".join("".join(" " if c in ("Cc", "Cs") else s for s, c in zip(text, categories, strict=True)).split())
    if all(category[0] in "CZ" for category in categories):  # nothing visible: controls, formats, spaces
        raise RefusedError(Status.EMPTY_COMMAND, "the command is empty")
    return words


@contextmanager
def refusing() -> Iterator[None]:
    """Turn any exception of the block into a refusal.

    Raises:
        RefusedError: with the status and the reason that the exception stands for.
    """
    try:
        yield
    except RefusedError:
        raise
    except CommandError as error:
        raise RefusedError(Status.BAD_COMMAND, f"{UNUSABLE}{one_line(error)}") from error
    except CommandCancelledError as error:
        raise cancelled() from error
    except MemoryFullError as error:
        raise RefusedError(Status.OUT_OF_MEMORY, one_line(error)) from error
    except Exception as error:
        raise RefusedError(Status.MODEL_FAILURE, f"{FAILED}{one_line(error)}") from error


def cancelled() -> RefusedError:
    """The refusal of a command that its client cancelled."""
    return RefusedError(Status.CANCELLED, "the client cancelled the command")
