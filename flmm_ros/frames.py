"""Transforms to another frame at the time of an image, by tf2. That package is optional; ROS 2 distributions include it."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from rclpy.clock import JumpThreshold
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.time import Time
from std_msgs.msg import Header

from flmm_core.common.plain_text import one_line
from flmm_core.spatial.location import Location, NoDepthError
from flmm_ros.conversions.geometry import rotation_from_message

_NOT_INSTALLED = "target_frame: expected tf2_ros, which is not installed"
_SET_BACK = JumpThreshold(min_forward=None, min_backward=Duration(seconds=-1))
"""Jumps of the clock, as of a bag that begins again, after which TF would refuse new transforms as older than its memory."""
_UNIT = 0.01
"""Largest deviation of a quaternion's length from 1."""


@dataclass(frozen=True)
class Transform:
    """A rigid transform from the frame of an image to another frame."""

    frame_id: str
    rotation: np.ndarray
    """``[3, 3]``."""
    translation: np.ndarray
    """``[3]`` metres."""

    def apply(self, location: Location) -> Location:
        """Express a location in the other frame."""
        return location.moved(self.rotation, self.translation)


class Frames:
    """Looks up transforms; listens to TF from its creation on, and forgets all when the clock is set back.

    Args:
        node: that subscribes, and logs a warning if tf2_ros is not installed.
    """

    def __init__(self, node: Node) -> None:
        self._buffer: Any = None
        try:
            tf2_ros = importlib.import_module("tf2_ros")
        except ImportError:
            node.get_logger().warning(_NOT_INSTALLED)
            return
        self._buffer = tf2_ros.Buffer()
        self._listener = tf2_ros.TransformListener(self._buffer, node)
        self._jumps = node.get_clock().create_jump_callback(_SET_BACK, post_callback=lambda _: self._buffer.clear())

    def transform(self, header: Header, frame_id: str, timeout: float) -> Transform:
        """The transform from the frame of an image to ``frame_id``, at the stamp of the image.

        Args:
            header: of the image.
            frame_id: the other frame.
            timeout: seconds to wait for it.

        Raises:
            NoDepthError: TF has no such transform, or one that is none, or tf2_ros is not installed; the message says why.
        """
        if self._buffer is None:
            raise NoDepthError(_NOT_INSTALLED)
        names = f"from {header.frame_id!r} to {frame_id!r} (target_frame) at the image's time"
        try:
            stamp = Time.from_msg(header.stamp)
            found = self._buffer.lookup_transform(frame_id, header.frame_id, stamp, Duration(seconds=timeout)).transform
        except Exception as error:  # of tf2's own types, which cannot be imported where tf2 is missing
            raise NoDepthError(f"no transform {names}: {one_line(error)}") from error
        at, turn = found.translation, found.rotation
        translation = np.array([at.x, at.y, at.z])
        length = np.linalg.norm([turn.x, turn.y, turn.z, turn.w])
        if not np.isfinite(translation).all() or not abs(length - 1) < _UNIT:
            raise NoDepthError(f"no transform {names}: expected finite numbers and a unit quaternion, got others")
        return Transform(frame_id, rotation_from_message(turn), translation)


class Lookup:
    """The transform of one image, which may arrive later than the image.

    It is tried at once, because TF forgets after ten seconds and a model may take longer, and waited for when it is needed.

    Args:
        frames: TF.
        header: of the image.
        frame_id: the other frame.
        timeout: seconds to wait for it when it is needed.
    """

    def __init__(self, frames: Frames, header: Header, frame_id: str, *, timeout: Callable[[], float]) -> None:
        self._frames = frames
        self._header = header
        self.frame_id = frame_id
        self._timeout = timeout
        self._found: Transform | None = None
        with suppress(NoDepthError):
            self._found = frames.transform(header, frame_id, 0.0)

    def result(self) -> Transform:
        """The transform.

        Raises:
            NoDepthError: it did not come in time; the message says why.
        """
        if self._found is None:
            self._found = self._frames.transform(self._header, self.frame_id, self._timeout())
        return self._found
