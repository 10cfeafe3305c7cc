"""Commands as they arrive, and the reasons to refuse them. Knows the message constants, but no topics and no models."""

from __future__ import annotations

import threading
import time
import unicodedata
from dataclasses import dataclass, field
from typing import TypeAlias

from rclpy.serialization import deserialize_message
from rclpy.time import Time
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header, String

from flmm_ros.goals import Goal
from flmm_ros.msg import GroundedAnswer

ImageMessage: TypeAlias = Image | CompressedImage


class RefusedError(Exception):
    """A command that gets no answer: a status of GroundedAnswer and the reason in one sentence."""

    def __init__(self, status: int, reason: str, header: Header | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason
        self.header = header
        """Header of the image that was refused, if there was one."""


@dataclass(frozen=True)
class Request:
    """One command on its way through the node. Whoever replies to it claims it first, so that it gets one reply."""

    request_id: int
    mode: int
    """MODE_CHAT or MODE_REFER of GroundedAnswer."""
    text: str
    """As it arrived."""
    stamp: int
    """When its sender published it, in nanoseconds of the sender's system clock; 0 if the middleware does not say."""
    goal: Goal | None = None
    """Where its reply goes, if it came by the action."""
    arrived: float = field(default_factory=time.monotonic)
    """Seconds on the monotonic clock."""
    replied: threading.Event = field(default_factory=threading.Event, compare=False)
    """Set when the reply has been handed to the middleware."""
    _unclaimed: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    @property
    def spoken(self) -> bool:
        """Whether its words are for who listens: a question by topic."""
        return self.goal is None and self.mode == GroundedAnswer.MODE_CHAT

    def claim(self) -> bool:
        """Take the right, and the duty, to reply: True for the first caller, whatever its thread, and False for others."""
        return self._unclaimed.acquire(blocking=False)


def decode_text(serialized: bytes) -> str:
    """The text of a serialized std_msgs/String.

    Raises:
        RefusedError: the message is malformed.
    """
    try:
        return deserialize_message(serialized, String).data
    except Exception as error:
        raise RefusedError(GroundedAnswer.STATUS_BAD_COMMAND, "the command message is malformed") from error


def clean_text(text: str, max_length: int) -> str:
    """The command as the model reads it: control characters become spaces, white space is single.

    Raises:
        RefusedError: nothing is left, or the text is too long.
    """
    if len(text) > max_length:
        reason = f"the command is too long: expected at most {max_length} characters (max_command_length), got {len(text)}"
        raise RefusedError(GroundedAnswer.STATUS_COMMAND_TOO_LONG, reason)
    categories = [unicodedata.category(sign) for sign in text]
    words = " ".join("".join(" " if c in ("Cc", "Cs") else s for s, c in zip(text, categories, strict=True)).split())
    if all(category[0] in "CZ" for category in categories):  # nothing to see: controls, formats, spaces
        raise RefusedError(GroundedAnswer.STATUS_EMPTY_COMMAND, "the command is empty")
    return words


@dataclass(frozen=True)
class Arrival:
    """An image message as it came from the middleware."""

    serialized: bytes
    time: Time
    """On the node's clock."""


class LatestImage:
    """Keeps the newest image message only, unread: most are replaced before any command needs them. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._arrival: Arrival | None = None
        self._taken: Arrival | None = None
        self._replaced = 0

    def put(self, serialized: bytes, now: Time) -> None:
        """Replace the image."""
        with self._lock:
            if self._arrival is not None and self._arrival is not self._taken:
                self._replaced += 1
            self._arrival = Arrival(serialized, now)

    def get(self) -> tuple[Arrival | None, int]:
        """The newest image, and how many were replaced unread since the last call."""
        with self._lock:
            replaced, self._replaced = self._replaced, 0
            self._taken = self._arrival
            return self._arrival, replaced


def no_image(topic: str, publishers: int) -> RefusedError:
    """Why there is no image, for a user who is sure that there is a camera."""
    reason = f"no image has arrived yet: nobody publishes {topic}"
    if publishers:
        hint = f"large images get lost with best effort, qos_overrides.{topic}.subscription.reliability:=reliable helps"
        reason = f"no image has arrived yet, though {publishers} publishes {topic} ({hint})"
    return RefusedError(GroundedAnswer.STATUS_NO_IMAGE, reason)


def decode_image(arrival: Arrival, kind: type[ImageMessage]) -> ImageMessage:
    """Read the message.

    Args:
        arrival: as it came.
        kind: of message.

    Raises:
        RefusedError: it is malformed, or has a stamp that no clock gives.
    """
    try:
        message = deserialize_message(arrival.serialized, kind)
    except Exception as error:
        reason = "the newest image message is malformed"
        raise RefusedError(GroundedAnswer.STATUS_BAD_IMAGE, reason) from error
    if (sec := message.header.stamp.sec) < 0:
        reason = f"the newest image has a negative stamp: expected seconds >= 0, got {sec}"
        raise RefusedError(GroundedAnswer.STATUS_BAD_IMAGE, reason, message.header)
    return message


def check_age(arrival: Arrival, header: Header, now: Time, limit: float) -> None:
    """Refuse a stale image.

    Args:
        arrival: when the image came.
        header: its header; stamp 0 means that the camera sets none.
        now: the node's clock.
        limit: seconds; 0 accepts any age.

    Raises:
        RefusedError: the image was taken, or came, longer ago than ``limit``.
    """
    if limit <= 0:
        return
    age = (now - arrival.time).nanoseconds * 1e-9
    if header.stamp.sec or header.stamp.nanosec:
        stamp = Time.from_msg(header.stamp, clock_type=now.clock_type)
        age = max(age, (now - stamp).nanoseconds * 1e-9)
    if age > limit:
        reason = f"the newest image is too old: expected at most {limit:g} s (max_image_age), got {age:.1f} s"
        raise RefusedError(GroundedAnswer.STATUS_IMAGE_TOO_OLD, reason, header)
