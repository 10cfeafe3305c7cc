"""Transforms to another frame at the time of an image, by tf2. That package is optional; ROS 2 distributions include it."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from rclpy.duration import Duration
from rclpy.node import Node
from rclpy.time import Time
from std_msgs.msg import Header

from flmm_core.common.plain_text import one_line
from flmm_core.spatial.location import Location, NoDepthError
from flmm_ros.conversions.geometry import rotation_from_message

_PATIENCE = 0.1
"""Seconds to wait for a transform: it often arrives slightly later than the image."""


class NoTransformError(RuntimeError):
    """tf2 is not installed."""


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
    """Looks up transforms; listens to TF from its creation on.

    Args:
        node: that subscribes.

    Raises:
        NoTransformError: tf2_ros is not installed.
    """

    def __init__(self, node: Node) -> None:
        try:
            tf2_ros = importlib.import_module("tf2_ros")
        except ImportError as error:
            raise NoTransformError("target_frame: expected tf2_ros, which is not installed") from error
        self._buffer: Any = tf2_ros.Buffer()
        self._listener = tf2_ros.TransformListener(self._buffer, node)

    def transform(self, header: Header, frame_id: str) -> Transform:
        """The transform from the frame of an image to ``frame_id``, at the stamp of the image.

        Raises:
            NoDepthError: TF has no such transform; the message says why.
        """
        try:
            stamp = Time.from_msg(header.stamp)
            found = self._buffer.lookup_transform(frame_id, header.frame_id, stamp, Duration(seconds=_PATIENCE)).transform
        except Exception as error:  # of tf2's own types, which cannot be imported where tf2 is missing
            names = f"from {header.frame_id!r} to {frame_id!r} (target_frame) at the image's time"
            raise NoDepthError(f"no transform {names}: {one_line(error)}") from error
        at = found.translation
        return Transform(frame_id, rotation_from_message(found.rotation), np.array([at.x, at.y, at.z]))
