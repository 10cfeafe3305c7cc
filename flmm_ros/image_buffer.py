"""The newest image of the camera with its depth. Messages stay serialized until a command needs the image."""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeAlias

import numpy as np
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.serialization import deserialize_message
from rclpy.time import Time
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from flmm_core.common.plain_text import one_line
from flmm_core.serving.health import CameraHealth
from flmm_core.serving.requests import CameraImage, RefusedError, Status
from flmm_ros import parameters, qos
from flmm_ros.conversions.compressed import image_from_compressed
from flmm_ros.conversions.images import BadImageError, image_from_message
from flmm_ros.delivery import Delivery, why_missing, wrong_type
from flmm_ros.depth_matcher import NO_DEPTH, DepthMatcher, DepthMessage, View, is_rectified
from flmm_ros.frames import Frames, Lookup
from flmm_ros.latest_image import Arrival, LatestImage
from flmm_ros.stamps import stamp_of, stamp_time

ImageMessage: TypeAlias = Image | CompressedImage

_DISCOVERY = 2.0
"""Seconds after activation in which a command waits for the first image: its publisher may not have been discovered yet."""
_FIRST = 1.0
"""Seconds to wait for the first image if a camera publishes: the node may have subscribed only now."""
_AHEAD = 0.5
"""Seconds by which a stamp may be ahead of the node's clock without a warning."""
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


class ImageBuffer:
    """Provides commands with their image: the newest one of the camera, or the one that came with a goal.

    Args:
        node: its parameters limit size and age of images, and choose the transports; its clock gives their age.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._latest = LatestImage()
        self._delivery = Delivery()
        self._depth = DepthMatcher()
        self._frames: Frames | None = None
        """Created at activation, or later with the first ``target_frame``."""
        self._began: float | None = None
        """When the node was activated, in seconds on the monotonic clock; None while it is not active."""
        self._ahead = 0.0
        """Seconds by which the newest image's stamp was ahead of the node's clock when it arrived."""
        self._read: tuple[Arrival, np.ndarray, Source] | None = None
        """The image of the last command."""
        node.add_post_set_parameters_callback(self._on_parameters)

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
    def depth_topic(self) -> str:
        """The topic of depth images before remapping; it depends on the parameter ``depth_transport``."""
        return "depth" if self.depth_type is Image else "depth/compressedDepth"

    @property
    def depth_type(self) -> type[DepthMessage]:
        """The type of the messages on :attr:`depth_topic`."""
        return Image if parameters.value(self._node, "depth_transport") == "raw" else CompressedImage

    def start(self) -> None:
        """The node was activated: images may come from now on, and transforms are collected if any will be needed."""
        self._began = time.monotonic()
        self._listen(parameters.value(self._node, "target_frame"))

    def clear(self) -> None:
        """The node was deactivated: discard images, depth images and camera info."""
        self._began = None
        self._latest.clear()
        self._depth.clear()
        self._delivery.clear()
        self._ahead = 0.0
        self._read = None

    def _on_parameters(self, changed: list[Parameter[Any]]) -> None:
        if self._began is not None:
            self._listen(next((str(one.value) for one in changed if one.name == "target_frame"), ""))

    def _listen(self, target_frame: str) -> None:
        if target_frame and self._frames is None:
            self._frames = Frames(self._node)

    def put(self, serialized: bytes) -> None:
        """Store an image message."""
        now = self._node.get_clock().now()
        try:
            stamp = stamp_of(serialized)
        except struct.error:
            stamp = 0  # the command that takes it refuses it
        self._latest.put(serialized, now)
        self._delivery.image(now.nanoseconds, stamp)
        self._ahead = (stamp - now.nanoseconds) * 1e-9
        if self._ahead > _AHEAD:
            self._node.get_logger().warning(
                f"images are stamped {self._ahead:.1f} s ahead of the node's clock: synchronise the camera's clock with it, or,"
                " with use_sim_time, publish /clock",
                throttle_duration_sec=60.0,
            )

    def put_depth(self, serialized: bytes) -> None:
        """Store a depth message; raises struct.error if it is too short to hold a stamp."""
        self._depth.put_depth(serialized, self.depth_type)

    def put_info(self, serialized: bytes) -> None:
        """Store a camera info."""
        self._delivery.info(self._node.get_clock().now().nanoseconds)
        self._depth.put_info(serialized)

    def health(self) -> CameraHealth:
        """What diagnostics say about the camera."""
        rates = self._delivery.rates(self._node.get_clock().now().nanoseconds)
        return CameraHealth(
            skipped=self._latest.skipped,
            received=rates.received,
            expected=rates.expected,
            ahead=self._ahead if self._ahead > _AHEAD else 0.0,
            trouble=self._why_missing(),
        )

    def _why_missing(self) -> str:
        return why_missing(self._node, qos.full_name(self._node, self.topic), self.message_type)

    def newest(self) -> CameraImage:
        """The newest image with its depth; the same array as before while no newer one has arrived.

        Raises:
            RefusedError: there is none, or it is too old, or it cannot be read.
        """
        arrival = self._first()
        if self._read is not None and self._read[0] is arrival:
            _, pixels, source = self._read
            self._check_age(arrival, source.header)
        else:
            message = _decode(arrival, self.message_type)
            self._check_age(arrival, message.header)
            pixels, source = self._pixels(message), Source(message.header, arrived=arrival.time)
        view = source.view
        if view.depth is None:  # also for the image of the command before: its depth may have arrived since
            view = self._view(source.header, *pixels.shape[:2])
        source = replace(source, view=self._in_frame(view, source.header))
        self._read = (arrival, pixels, source)
        return CameraImage(pixels, source)

    def _first(self) -> Arrival:
        """The newest image; the first one is waited for, shortly."""
        began = self._began
        arrival = self._latest.get(0.0 if began is None else max(0.0, began + _DISCOVERY - time.monotonic()))
        if arrival is None and self._node.count_publishers(qos.full_name(self._node, self.topic)):
            arrival = self._latest.get(_FIRST)
        if arrival is None:
            raise RefusedError(Status.NO_IMAGE, f"no image has arrived yet: {self._why_missing()}")
        return arrival

    def from_goal(self, message: Image) -> CameraImage:
        """An image that came with a goal; it has no depth.

        Raises:
            RefusedError: it cannot be read.
        """
        view = View(reason="the goal brought an image of its own, which has no depth")
        return CameraImage(self._pixels(message), Source(message.header, view))

    def _view(self, header: Header, height: int, width: int) -> View:
        view = self._depth.view(
            header,
            height,
            width,
            tolerance=parameters.value(self._node, "depth_tolerance", float),
            max_pixels=parameters.value(self._node, "max_image_pixels"),
            rectified=is_rectified(qos.full_name(self._node, self.topic)),
        )
        if view.reason == NO_DEPTH:
            topic = qos.full_name(self._node, self.depth_topic)
            if wrong := wrong_type(self._node, topic, self.depth_type, "depth_transport"):
                return View(reason=f"{NO_DEPTH}: {wrong}")
        return view

    def _in_frame(self, view: View, header: Header) -> View:
        """The view with a lookup of the transform to the frame of the locations, where it is another one."""
        wanted = parameters.value(self._node, "target_frame")
        if self._frames is None or view.depth is None or wanted in ("", header.frame_id):
            return replace(view, lookup=None)
        if view.lookup is not None and view.lookup.frame_id == wanted:
            return view
        timeout = partial(parameters.value, self._node, "transform_timeout", float)
        return replace(view, lookup=Lookup(self._frames, header, wanted, timeout=timeout))

    def _pixels(self, message: ImageMessage) -> np.ndarray:
        read = image_from_message if isinstance(message, Image) else image_from_compressed
        most, bits = (parameters.value(self._node, name) for name in ("max_image_pixels", "significant_bits"))
        try:
            return read(message, most, bits)
        except BadImageError as error:
            raise RefusedError(Status.BAD_IMAGE, one_line(error), Source(message.header)) from error

    def _check_age(self, arrival: Arrival, header: Header) -> None:
        now = self._node.get_clock().now()
        limit = parameters.value(self._node, "max_image_age", float)
        try:
            check_age(arrival, header, now, limit)
        except RefusedError as refusal:
            if (now - arrival.time).nanoseconds * 1e-9 <= limit:
                raise
            rates = self._delivery.rates(now.nanoseconds)
            raise RefusedError(refusal.status, f"{refusal.reason}; {rates}: {self._why_missing()}", refusal.source) from None


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
