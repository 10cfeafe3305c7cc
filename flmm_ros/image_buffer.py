"""The newest image of the camera with its depth. Messages stay serialized until a command needs the image."""

from __future__ import annotations

import threading
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
from flmm_core.serving.requests import CameraImage, RefusedError, Status
from flmm_core.spatial.location import NoDepthError
from flmm_ros import parameters, qos
from flmm_ros.conversions.images import BadImageError, image_from_compressed, image_from_message
from flmm_ros.depth_matcher import DepthMatcher, View
from flmm_ros.frames import Frames, NoTransformError
from flmm_ros.middleware import LARGE_IMAGES, PROFILES_VARIABLE

ImageMessage: TypeAlias = Image | CompressedImage

_FIRST = 1.0
"""Seconds to wait for the first image if a camera publishes: the node may have subscribed only now."""
_LONG_AGO = 86400.0
"""Seconds: an older image was probably stamped by another clock than the node's."""


@dataclass(frozen=True)
class Source:
    """Metadata of a camera image."""

    header: Header
    view: View = field(default_factory=View)
    arrived: Time | None = None
    """Time of arrival on the node's clock; None if the image did not arrive on the image topic."""

    def age(self, now: Time) -> float:
        """Seconds since the image was taken, or since it arrived if it has no stamp; 0 if neither is known."""
        taken = stamp_time(self.header, now.clock_type) or self.arrived
        return 0.0 if taken is None else (now - taken).nanoseconds * 1e-9


def stamp_time(header: Header, clock_type: ClockType) -> Time | None:
    """The time of a stamp; None for stamp 0, which means "no stamp", and for negative ones, which no clock gives."""
    if header.stamp.sec > 0 or (header.stamp.sec == 0 and header.stamp.nanosec):
        return Time.from_msg(header.stamp, clock_type=clock_type)
    return None


@dataclass(frozen=True)
class Arrival:
    """A serialized image message."""

    serialized: bytes
    time: Time
    """When it arrived, on the node's clock."""


class LatestImage:
    """Keeps only the newest image message, serialized: most are replaced before a command needs them. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._arrival: Arrival | None = None
        self._taken: Arrival | None = None
        self.skipped = 0
        """Number of images that were replaced before a command used them."""

    def put(self, serialized: bytes, now: Time) -> None:
        """Replace the image."""
        with self._changed:
            if self._arrival is not None and self._arrival is not self._taken:
                self.skipped += 1
            self._arrival = Arrival(serialized, now)
            self._changed.notify_all()

    def get(self, timeout: float) -> Arrival | None:
        """The newest image; waits up to ``timeout`` seconds for the first one, and returns None if none arrives."""
        with self._changed:
            self._changed.wait_for(lambda: self._arrival is not None, timeout)
            self._taken = self._arrival
            return self._arrival

    def clear(self) -> None:
        """Discard the image."""
        with self._changed:
            self._arrival = self._taken = None


class ImageBuffer:
    """Provides commands with their image: the newest one of the camera, or the one that came with a goal.

    Args:
        node: its parameters limit size and age of images, and choose the transport; its clock gives their age.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._latest = LatestImage()
        self.depth = DepthMatcher()
        self._frames: Frames | None = None
        """Created with the first transform that is needed."""
        self._read: tuple[Arrival, np.ndarray, Source] | None = None
        """The image of the last command."""

    @property
    def topic(self) -> str:
        """The topic of images before remapping; it depends on the parameter ``image_transport``."""
        return "image/compressed" if self._compressed else "image"

    @property
    def message_type(self) -> type[ImageMessage]:
        """The type of the messages on :attr:`topic`."""
        return CompressedImage if self._compressed else Image

    @property
    def _compressed(self) -> bool:
        return bool(parameters.value(self._node, "image_transport") == "compressed")

    @property
    def skipped(self) -> int:
        """Number of images that were replaced before a command used them."""
        return self._latest.skipped

    def put(self, serialized: bytes) -> None:
        """Store an image message."""
        self._latest.put(serialized, self._node.get_clock().now())

    def clear(self) -> None:
        """Discard images, depth images and camera info."""
        self._latest.clear()
        self.depth.clear()
        self._read = None

    def newest(self) -> CameraImage:
        """The newest image with its depth; the same array as before while no newer one has arrived.

        Raises:
            RefusedError: there is none, or it is too old, or it cannot be read.
        """
        arrival = self._latest.get(0.0)
        if arrival is None:
            topic = qos.full_name(self._node, self.topic)
            publishers = self._node.count_publishers(topic)
            arrival = self._latest.get(_FIRST if publishers else 0.0)
            if arrival is None:
                raise no_image(topic, publishers)
        if self._read is not None and self._read[0] is arrival:
            _, pixels, source = self._read
            self._check_age(arrival, source.header)
        else:
            message = _decode(arrival, self.message_type)
            self._check_age(arrival, message.header)
            pixels, source = self._pixels(message), Source(message.header, arrived=arrival.time)
        if source.view.depth is None:  # also for the image of the command before: its depth may have arrived since
            source = replace(source, view=self._view(source.header, *pixels.shape[:2]))
        self._read = (arrival, pixels, source)
        return CameraImage(pixels, source)

    def from_goal(self, message: Image) -> CameraImage:
        """An image that came with a goal; it has no depth.

        Raises:
            RefusedError: it cannot be read.
        """
        view = View(reason="the goal brought an image of its own, which has no depth")
        return CameraImage(self._pixels(message), Source(message.header, view))

    def _view(self, header: Header, height: int, width: int) -> View:
        tolerance = parameters.value(self._node, "depth_tolerance", float)
        most = parameters.value(self._node, "max_image_pixels")
        view = self.depth.view(header, height, width, tolerance=tolerance, max_pixels=most)
        wanted = parameters.value(self._node, "target_frame")
        if view.depth is None or wanted in ("", header.frame_id):
            return view
        try:
            if self._frames is None:
                self._frames = Frames(self._node)
            return replace(view, transform=self._frames.transform(header, wanted))
        except (NoTransformError, NoDepthError) as error:
            return View(reason=one_line(error))

    def _pixels(self, message: ImageMessage) -> np.ndarray:
        read = image_from_message if isinstance(message, Image) else image_from_compressed
        most, bits = (parameters.value(self._node, name) for name in ("max_image_pixels", "significant_bits"))
        try:
            return read(message, most, bits)
        except BadImageError as error:
            raise RefusedError(Status.BAD_IMAGE, one_line(error), Source(message.header)) from error

    def _check_age(self, arrival: Arrival, header: Header) -> None:
        limit = parameters.value(self._node, "max_image_age", float)
        check_age(arrival, header, self._node.get_clock().now(), limit)


def no_image(topic: str, publishers: int) -> RefusedError:
    """The refusal of a command without an image, with what a user can check.

    Args:
        topic: full name of the image topic.
        publishers: number of publishers on it.
    """
    reason = f"no image has arrived yet: no node publishes {topic}"
    if publishers:
        hint = f"Fast DDS loses large images, unless the camera runs with {PROFILES_VARIABLE}={LARGE_IMAGES}"
        reason = f"no image has arrived yet, although publishers of {topic} exist: {publishers} ({hint})"
    return RefusedError(Status.NO_IMAGE, reason)


def _decode(arrival: Arrival, kind: type[ImageMessage]) -> ImageMessage:
    """Deserialize the message.

    Raises:
        RefusedError: it is malformed, or its stamp is negative.
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
        arrival: the image.
        header: its header; stamp 0 means that the camera sets none.
        now: the node's clock.
        limit: seconds; 0 accepts any age.

    Raises:
        RefusedError: the image was taken, or arrived, more than ``limit`` seconds ago.
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
