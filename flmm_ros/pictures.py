"""The newest image of the camera with its depth, as pictures for commands. Images are kept unread until a command needs one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TypeAlias

import numpy as np
from rclpy.clock import ClockType
from rclpy.node import Node
from rclpy.serialization import deserialize_message
from rclpy.time import Time
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from flmm_core.common.plain_text import one_line
from flmm_core.serving.requests import Picture, RefusedError, Status
from flmm_core.spatial.location import NoDepthError
from flmm_ros import conversions, parameters
from flmm_ros.frames import Frames, NoTransformError
from flmm_ros.middleware import LARGE_IMAGES, PROFILES_VARIABLE
from flmm_ros.space import Space, View

ImageMessage: TypeAlias = Image | CompressedImage

_FIRST = 1.0
"""Seconds for which the first image is waited for where there is a camera: the node may have subscribed just now."""
_LONG_AGO = 86400.0
"""Seconds: an image that is older was stamped by another clock than the node's."""


@dataclass(frozen=True)
class Source:
    """What is known of a picture beside its pixels."""

    header: Header
    view: View = field(default_factory=View)
    arrived: Time | None = None
    """On the node's clock; None if it did not come by the topic."""

    def age(self, now: Time) -> float:
        """Seconds since it was taken, or came if its camera sets no stamp; 0 if nothing is known."""
        taken = stamp_time(self.header, now.clock_type) or self.arrived
        return 0.0 if taken is None else (now - taken).nanoseconds * 1e-9


def stamp_time(header: Header, clock_type: ClockType) -> Time | None:
    """The time of a stamp; None for stamp 0, which means that there is none, and for one that no clock gives."""
    if header.stamp.sec > 0 or (header.stamp.sec == 0 and header.stamp.nanosec):
        return Time.from_msg(header.stamp, clock_type=clock_type)
    return None


@dataclass(frozen=True)
class Arrival:
    """An image message as it came from the middleware."""

    serialized: bytes
    time: Time
    """On the node's clock."""


class LatestImage:
    """Keeps the newest image message only, unread: most are replaced before any command needs them. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._arrival: Arrival | None = None
        self._taken: Arrival | None = None
        self.skipped = 0
        """Images that were replaced before anybody looked at them."""

    def put(self, serialized: bytes, now: Time) -> None:
        """Replace the image."""
        with self._changed:
            if self._arrival is not None and self._arrival is not self._taken:
                self.skipped += 1
            self._arrival = Arrival(serialized, now)
            self._changed.notify_all()

    def get(self, patience: float) -> Arrival | None:
        """The newest image; the first one is waited for, for so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self._arrival is not None, patience)
            self._taken = self._arrival
            return self._arrival

    def clear(self) -> None:
        """Forget the image."""
        with self._changed:
            self._arrival = self._taken = None


class Pictures:
    """Gives commands what they look at.

    Args:
        node: whose parameters say what is accepted, and by whose clock images age.
        topic: full name of the topic of images, for who wonders where they are.
    """

    def __init__(self, node: Node, topic: Callable[[], str]) -> None:
        self._node = node
        self._topic = topic
        self._latest = LatestImage()
        self.space = Space()
        self._frames: Frames | None = None
        """From when the first transform was wanted."""
        self._read: tuple[Arrival, np.ndarray, Source] | None = None
        """The image of the last command."""

    def put(self, serialized: bytes) -> None:
        """An image message came."""
        self._latest.put(serialized, self._node.get_clock().now())

    @property
    def skipped(self) -> int:
        """Images that nobody looked at."""
        return self._latest.skipped

    def clear(self) -> None:
        """Forget everything that came."""
        self._latest.clear()
        self.space.clear()
        self._read = None

    def newest(self, kind: type[ImageMessage]) -> Picture:
        """The newest image with its depth; the same array while no newer one has come.

        Args:
            kind: of message.

        Raises:
            RefusedError: there is none, or it is too old, or cannot be used.
        """
        arrival = self._latest.get(0.0)
        if arrival is None:
            publishers = self._node.count_publishers(self._topic())
            arrival = self._latest.get(_FIRST if publishers else 0.0)
            if arrival is None:
                raise no_image(self._topic(), publishers)
        if self._read is not None and self._read[0] is arrival:
            _, pixels, source = self._read
            self._check_age(arrival, source.header)
        else:
            message = _decode(arrival, kind)
            self._check_age(arrival, message.header)
            pixels, source = self._pixels(message), Source(message.header, arrived=arrival.time)
        if source.view.depth is None:  # or it came after the command before
            source = replace(source, view=self._view(source.header, *pixels.shape[:2]))
        self._read = (arrival, pixels, source)
        return Picture(pixels, source)

    def _view(self, header: Header, height: int, width: int) -> View:
        tolerance = parameters.value(self._node, "depth_tolerance", float)
        most = parameters.value(self._node, "max_image_pixels")
        view = self.space.view(header, height, width, tolerance=tolerance, max_pixels=most)
        wanted = parameters.value(self._node, "target_frame")
        if view.depth is None or wanted in ("", header.frame_id):
            return view
        try:
            if self._frames is None:
                self._frames = Frames(self._node)
            return replace(view, transform=self._frames.transform(header, wanted))
        except (NoTransformError, NoDepthError) as error:
            return View(reason=one_line(error))

    def given(self, message: Image) -> Picture:
        """An image that came with its command.

        Raises:
            RefusedError: it cannot be used.
        """
        view = View(reason="the goal brought an image of its own, which has no depth")
        return Picture(self._pixels(message), Source(message.header, view))

    def _pixels(self, message: ImageMessage) -> np.ndarray:
        read = conversions.image_from_message if isinstance(message, Image) else conversions.image_from_compressed
        most, bits = (parameters.value(self._node, name) for name in ("max_image_pixels", "significant_bits"))
        try:
            return read(message, most, bits)
        except conversions.BadImageError as error:
            raise RefusedError(Status.BAD_IMAGE, one_line(error), Source(message.header)) from error

    def _check_age(self, arrival: Arrival, header: Header) -> None:
        limit = parameters.value(self._node, "max_image_age", float)
        check_age(arrival, header, self._node.get_clock().now(), limit)


def no_image(topic: str, publishers: int) -> RefusedError:
    """Why there is no image, for a user who is sure that there is a camera."""
    reason = f"no image has arrived yet: nobody publishes {topic}"
    if publishers:
        hint = f"Fast DDS loses large images, unless the camera runs with {PROFILES_VARIABLE}={LARGE_IMAGES}"
        reason = f"no image has arrived yet, though {publishers} publishes {topic} ({hint})"
    return RefusedError(Status.NO_IMAGE, reason)


def _decode(arrival: Arrival, kind: type[ImageMessage]) -> ImageMessage:
    """Read the message.

    Raises:
        RefusedError: it is malformed, or has a stamp that no clock gives.
    """
    try:
        message = deserialize_message(arrival.serialized, kind)
    except Exception as error:
        reason = "the newest image message is malformed"
        raise RefusedError(Status.BAD_IMAGE, reason) from error
    if (sec := message.header.stamp.sec) < 0:
        reason = f"the newest image has a negative stamp: expected seconds >= 0, got {sec}"
        raise RefusedError(Status.BAD_IMAGE, reason, Source(message.header))
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
    since_arrival = (now - arrival.time).nanoseconds * 1e-9
    age = max(since_arrival, Source(header, arrived=arrival.time).age(now))
    if age > limit:
        reason = f"the newest image is too old: expected at most {limit:g} s (max_image_age), got {age:.1f} s"
        if age > _LONG_AGO and since_arrival <= limit:
            reason += "; is it from a bag or a simulator? Then set use_sim_time, and let it publish /clock"
        raise RefusedError(Status.IMAGE_TOO_OLD, reason, Source(header, arrived=arrival.time))
