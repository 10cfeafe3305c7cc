"""Commands from messages, and replies as messages. Independent of topics and models."""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from builtin_interfaces.msg import Time as TimeMsg
from rclpy.node import Node
from rclpy.serialization import deserialize_message
from rclpy.time import Time
from std_msgs.msg import Header, String

from flmm_core.common.plain_text import one_line
from flmm_core.serving.requests import Mode, RefusedError, Reply, Status
from flmm_core.spatial.camera import CameraError
from flmm_core.spatial.location import Location, NoDepthError
from flmm_core.types import GroundedAnswer
from flmm_ros import parameters
from flmm_ros.conversions.answers import durations_message, phrase_message
from flmm_ros.conversions.geometry import location_message
from flmm_ros.depth_matcher import View
from flmm_ros.goals import Goal
from flmm_ros.image_buffer import Source
from flmm_ros.msg import GroundedAnswer as GroundedAnswerMsg
from flmm_ros.msg import GroundedPhrase as GroundedPhraseMsg
from flmm_ros.msg import Location as LocationMsg
from flmm_ros.msg import StageDurations, Watch

Located: TypeAlias = tuple[int, Location]
"""Label of a phrase, and the location of its object."""


@dataclass(frozen=True)
class Command:
    """One command of a client."""

    request_id: int
    """Counts from 1; 0 for a watch list."""
    mode: Mode
    text: str
    """As the client sent it."""
    stamp: int = 0
    """When the client published it, in nanoseconds of the client's system clock; 0 if the middleware does not report that. Of a
    goal: when it arrived, by the node's clock."""
    client: Hashable = None
    """Key of fair turns: the publisher's id, or the client that a goal names; None for goals that name none, because rclpy does
    not report which client sent a goal."""
    goal: Goal | None = None
    """The goal that gets the reply, if the command came by the action."""
    arrived: float = field(default_factory=time.monotonic)
    """When it arrived, in seconds on the monotonic clock."""

    @property
    def spoken(self) -> bool:
        """Whether the text of its reply is published for speech output: for questions by topic."""
        return self.goal is None and self.mode == Mode.CHAT


def decode_text(serialized: bytes) -> str:
    """Deserialize a std_msgs/String.

    Raises:
        RefusedError: the message is malformed.
    """
    try:
        return str(deserialize_message(serialized, String).data)
    except Exception as error:
        raise RefusedError(Status.BAD_COMMAND, "the command message is malformed") from error


def decode_phrases(serialized: bytes, most: int) -> list[str]:
    """Deserialize a flmm_ros/Watch.

    Args:
        serialized: the message.
        most: maximum number of phrases.

    Raises:
        RefusedError: the message is malformed, or its list is too long.
    """
    try:
        phrases = list(deserialize_message(serialized, Watch).phrases)
    except Exception as error:
        raise RefusedError(Status.BAD_COMMAND, "the watch list is malformed") from error
    if len(phrases) > most:
        reason = f"the watch list is too long: expected at most {most} phrases (max_phrases), got {len(phrases)}"
        raise RefusedError(Status.BAD_COMMAND, reason)
    return phrases


def reply_message(command: Command, reply: Reply, now: Time, *, max_text: int) -> tuple[GroundedAnswerMsg, list[Located]]:
    """Convert a reply to a message.

    Args:
        command: that is answered.
        reply: an answer or a refusal.
        now: by the node's clock.
        max_text: number of characters to which a command that was too long is cut.

    Returns:
        The message, and the locations of the objects that have depth.
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
    message.answer, message.left_out, message.reason = answer.text, list(answer.left_out), answer.reason
    message.image_height, message.image_width = answer.image_height, answer.image_width
    message.phrases, located = _phrases(answer, source.header, source.view)
    now_ = time.monotonic()
    message.durations = durations_message(
        answer.seconds, waiting=reply.began - arrived, conversion=reply.fetching + now_ - began, total=now_ - arrived
    )
    return message, located


def node_reply(node: Node, command: Command, reply: Reply) -> tuple[GroundedAnswerMsg, list[Located]]:
    """:func:`reply_message` with the clock and the parameters of a node."""
    longest = parameters.value(node, "max_command_length")
    return reply_message(command, reply, node.get_clock().now(), max_text=longest)


def _phrases(answer: GroundedAnswer, header: Header, view: View) -> tuple[list[GroundedPhraseMsg], list[Located]]:
    """Phrases as messages, with labels from 1, and the locations that are known."""
    messages: list[GroundedPhraseMsg] = []
    located: list[Located] = []
    view = view.settled() if answer.phrases else view
    for label, phrase in enumerate(answer.phrases, start=1):
        place = _place(view, phrase.mask)
        if isinstance(place, Location):
            located.append((label, place))
            frame_id = header.frame_id if view.transform is None else view.transform.frame_id
            place_message = location_message(place, frame_id)
        else:
            place_message = LocationMsg(reason=place)
        messages.append(phrase_message(phrase, label, header, place_message))
    return messages, located


def _place(view: View, mask: np.ndarray) -> Location | str:
    """The location of an object, or the reason why it is unknown: whatever fails here costs no mask and no answer."""
    try:
        return view.locate(mask)
    except (NoDepthError, CameraError) as error:
        return one_line(error)
    except Exception as error:
        return f"the location cannot be computed: {one_line(error)}"


def joined(phrases: Sequence[str]) -> str:
    """A watch list as one text, as its results repeat it."""
    return ". ".join(phrases)


def located_header(message: GroundedAnswerMsg) -> Header:
    """The header of messages about locations: the stamp of the image, the frame of the locations."""
    frames = [phrase.location.frame_id for phrase in message.phrases if phrase.location.valid]
    return Header(stamp=message.header.stamp, frame_id=frames[0] if frames else message.header.frame_id)
