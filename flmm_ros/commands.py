"""Commands as they come in messages, and replies as they go out in them. Knows the messages, but no topics and no models."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from builtin_interfaces.msg import Time as TimeMsg
from rclpy.serialization import deserialize_message
from rclpy.time import Time
from std_msgs.msg import Header, String

from flmm_core.common.plain_text import one_line
from flmm_core.serving.requests import Mode, RefusedError, Reply, Status
from flmm_core.spatial.location import Location, NoDepthError
from flmm_core.types import GroundedAnswer
from flmm_ros import conversions
from flmm_ros.goals import Goal
from flmm_ros.msg import GroundedAnswer as GroundedAnswerMsg
from flmm_ros.msg import GroundedPhrase as GroundedPhraseMsg
from flmm_ros.msg import Location as LocationMsg
from flmm_ros.msg import StageDurations, Watch
from flmm_ros.pictures import Source
from flmm_ros.space import View

Located: TypeAlias = tuple[int, Location]
"""Label of a phrase, and where its thing is."""


@dataclass(frozen=True)
class Command:
    """One command as it came."""

    request_id: int
    """0 for a standing list."""
    mode: Mode
    text: str
    """As it came."""
    stamp: int = 0
    """When its sender published it, in nanoseconds of the sender's system clock; 0 if the middleware does not say."""
    client: Hashable = None
    """Who sent it; None for who sends goals, whom rclpy does not tell apart."""
    goal: Goal | None = None
    """Where its reply goes, if it came by the action."""
    arrived: float = field(default_factory=time.monotonic)
    """Seconds on the monotonic clock."""

    @property
    def spoken(self) -> bool:
        """Whether its words are for who listens: a question by topic."""
        return self.goal is None and self.mode == Mode.CHAT


def decode_text(serialized: bytes) -> str:
    """The text of a serialized std_msgs/String.

    Raises:
        RefusedError: the message is malformed.
    """
    try:
        return str(deserialize_message(serialized, String).data)
    except Exception as error:
        raise RefusedError(Status.BAD_COMMAND, "the command message is malformed") from error


def decode_phrases(serialized: bytes, most: int) -> list[str]:
    """The phrases of a serialized Watch.

    Args:
        serialized: the message.
        most: phrases that a list may have.

    Raises:
        RefusedError: the message is malformed, or its list is too long.
    """
    try:
        phrases = list(deserialize_message(serialized, Watch).phrases)
    except Exception as error:
        raise RefusedError(Status.BAD_COMMAND, "the list to watch is malformed") from error
    if len(phrases) > most:
        reason = f"the list to watch is too long: expected at most {most} phrases (max_phrases), got {len(phrases)}"
        raise RefusedError(Status.BAD_COMMAND, reason)
    return phrases


def reply_message(command: Command, reply: Reply, now: Time, *, max_text: int) -> tuple[GroundedAnswerMsg, list[Located]]:
    """A reply as a message.

    Args:
        command: that it is the reply to.
        reply: an answer or a refusal.
        now: by the node's clock.
        max_text: characters of the command that are repeated if it was too long.

    Returns:
        The message, and where those things are that have depth.
    """
    began = time.monotonic()
    source: Source = reply.source or Source(Header())
    too_long = reply.status == Status.COMMAND_TOO_LONG
    message = GroundedAnswerMsg(
        header=source.header,
        image_age=source.age(now),
        request_id=command.request_id,
        command_stamp=TimeMsg(sec=command.stamp // 10**9, nanosec=command.stamp % 10**9),
        mode=int(command.mode),
        command=command.text[:max_text] if too_long else command.text,
        status=int(reply.status),
        reason=reply.reason,
        tracked=reply.tracked,
    )
    arrived = command.arrived if command.request_id else reply.began
    located: list[Located] = []
    if reply.answer is None:
        message.durations = StageDurations(total=time.monotonic() - arrived)
        return message, located
    answer = reply.answer
    message.answer, message.left_out = answer.text, list(answer.left_out)
    message.image_height, message.image_width = answer.image_height, answer.image_width
    message.phrases, located = _phrases(answer, source.header, source.view)
    now_ = time.monotonic()
    message.durations = conversions.durations_message(
        answer.seconds, waiting=reply.began - arrived, conversion=reply.fetching + now_ - began, total=now_ - arrived
    )
    return message, located


def _phrases(answer: GroundedAnswer, header: Header, view: View) -> tuple[list[GroundedPhraseMsg], list[Located]]:
    """The phrases, labels counting up from 1, and where they are."""
    messages: list[GroundedPhraseMsg] = []
    located: list[Located] = []
    for label, phrase in enumerate(answer.phrases, start=1):
        place = _place(view, phrase.mask)
        if isinstance(place, Location):
            located.append((label, place))
            frame_id = header.frame_id if view.transform is None else view.transform.frame_id
            place_message = conversions.location_message(place, frame_id)
        else:
            place_message = LocationMsg(reason=place)
        messages.append(conversions.phrase_message(phrase, label, header, place_message))
    return messages, located


def _place(view: View, mask: np.ndarray) -> Location | str:
    """Where it is, or why that is not known."""
    try:
        return view.locate(mask)
    except NoDepthError as error:
        return one_line(error)


def joined(phrases: Sequence[str]) -> str:
    """A list as one text, as replies repeat it."""
    return ". ".join(phrases)


def located_header(message: GroundedAnswerMsg) -> Header:
    """Of what is about locations: in their frame."""
    frames = [phrase.location.frame_id for phrase in message.phrases if phrase.location.valid]
    return Header(stamp=message.header.stamp, frame_id=frames[0] if frames else message.header.frame_id)
