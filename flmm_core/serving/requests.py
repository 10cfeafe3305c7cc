"""Commands on their way to a model, and the replies on their way back. Knows no models and no transport."""

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
from flmm_core.types import GroundedAnswer

UNUSABLE, FAILED = "the command cannot be used: ", "the model failed: "
"""What stands before the reason of a command that is to blame, and of a model that is."""


class Status(IntEnum):
    """What became of a command."""

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
    """What is wanted of a picture."""

    CHAT = 0
    """An answer, and masks of what it names."""
    REFER = 1
    """Masks of a given phrase."""
    WATCH = 2
    """Masks of a standing list of phrases, again and again."""


class RefusedError(Exception):
    """A command that gets no answer: its status, the reason in one sentence, and the source of a picture that was refused."""

    def __init__(self, status: Status, reason: str, source: Any = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.source = source


@dataclass(frozen=True)
class Picture:
    """What a command looks at."""

    pixels: np.ndarray
    """``[H, W, 3]`` uint8 RGB."""
    source: Any = None
    """What its sender knows of it, for instance its header; carried through unread."""


@dataclass(frozen=True)
class Reply:
    """The one reply to a command."""

    status: Status
    reason: str = ""
    """Why it was refused, in one sentence; empty if it was answered."""
    answer: GroundedAnswer | None = None
    """None if it was refused."""
    picture: Picture | None = None
    """What was looked at; None if it was refused."""
    source: Any = None
    """Source of the picture; of one that was refused, too."""
    began: float = 0.0
    """When the worker took it up, in seconds on the monotonic clock; 0 if it never did."""
    fetching: float = 0.0
    """Seconds in which its picture was fetched and read."""
    tracked: bool = False
    """The masks were carried over from an earlier picture; the model has not seen this one."""


@dataclass(frozen=True)
class Limits:
    """Of one answer; None: as the pipeline is configured."""

    max_new_tokens: int | None = None
    max_phrases: int | None = None


class Request:
    """A command: it knows where its picture comes from and where its reply goes, and gets one reply exactly.

    Args:
        mode: CHAT or REFER.
        words: as the model reads them, see :func:`clean_text`: the question, or the phrases of refer mode.
        picture: gives the picture when the command's turn comes, in the worker's thread; may raise :class:`RefusedError`.
        reply: takes the reply, in any thread. If it cannot send it and raises, it is called again with a refusal that says so.
        limits: of the answer. Asked when the command's turn comes; may raise :class:`RefusedError`.
        client: who asks; clients are served in turn.
        callbacks: follows the command.
    """

    def __init__(
        self,
        mode: Mode,
        words: Sequence[str],
        *,
        picture: Callable[[], Picture],
        reply: Callable[[Reply], None],
        limits: Callable[[], Limits] = Limits,
        client: Hashable = None,
        callbacks: Callbacks | None = None,
    ) -> None:
        self.mode = mode
        self.words = tuple(words)
        self.picture = picture
        self.limits = limits
        self.client = client
        self.callbacks = callbacks or Callbacks()
        self.arrived = time.monotonic()
        """Seconds on the monotonic clock."""
        self.replied = threading.Event()
        """Set when the reply has been handed over."""
        self._reply = reply
        self._unclaimed = threading.Lock()

    def finish(self, reply: Reply) -> bool:
        """Give the command its reply, unless it has one: the first caller does, whatever its thread.

        Returns:
            Whether this was the first.
        """
        if not self._unclaimed.acquire(blocking=False):
            return False
        try:
            self._reply(reply)
        except Exception as error:
            reason = f"the answer cannot be sent: {one_line(error)}"
            with suppress(Exception):  # then nothing can be sent any more, and the next command is to be served all the same
                self._reply(Reply(Status.MODEL_FAILURE, reason, source=reply.source, began=reply.began))
        finally:
            self.replied.set()
        return True

    def refuse(self, refusal: RefusedError) -> bool:
        """:meth:`finish` with a refusal."""
        return self.finish(Reply(refusal.status, refusal.reason, source=refusal.source))


def clean_text(text: str, max_length: int) -> str:
    """A command as the model reads it: control characters become spaces, white space is single.

    Raises:
        RefusedError: nothing is left, or the text is too long.
    """
    if len(text) > max_length:
        reason = f"the command is too long: expected at most {max_length} characters (max_command_length), got {len(text)}"
        raise RefusedError(Status.COMMAND_TOO_LONG, reason)
    categories = [unicodedata.category(sign) for sign in text]
    words = " ".join("".join(" " if c in ("Cc", "Cs") else s for s, c in zip(text, categories, strict=True)).split())
    if all(category[0] in "CZ" for category in categories):  # nothing to see: controls, formats, spaces
        raise RefusedError(Status.EMPTY_COMMAND, "the command is empty")
    return words


@contextmanager
def refusing() -> Iterator[None]:
    """Whatever goes wrong with a command inside the block, as a refusal.

    Raises:
        RefusedError: says what went wrong.
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
    """Of a command that its sender does not want any more."""
    return RefusedError(Status.CANCELLED, "the client cancelled the command")
