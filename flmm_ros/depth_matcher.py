"""Matches depth images and camera infos to camera images by their stamps.

The depth of an image is looked up before the model processes the image: when a slow model has answered, newer depth images
would have replaced it.
"""

from __future__ import annotations

import struct
import threading
from collections import deque
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from flmm_core.spatial.location import Location, NoDepthError, locate
from flmm_ros.conversions.images import BadImageError, depth_from_message
from flmm_ros.frames import Transform

T = TypeVar("T")

_KEPT = 8
"""Number of depth images that are kept, serialized: more than arrive while one camera image is in transit."""
_WAIT = 0.2
"""Seconds to wait for the depth of an image, if any depth has arrived before."""


@dataclass(frozen=True)
class View:
    """Depth and intrinsics of one image, or the reason why there are none."""

    depth: np.ndarray | None = None
    """``[H, W]`` float32 metres; NaN where there is none."""
    intrinsics: np.ndarray | None = None
    """``[3, 3]`` pinhole matrix, pixels."""
    reason: str = ""
    """Why there is no depth; empty if there is."""
    transform: Transform | None = None
    """To the frame of the locations; None for the frame of the image."""

    def locate(self, mask: np.ndarray) -> Location:
        """As :func:`flmm_core.spatial.location.locate`, in the frame of the locations.

        Args:
            mask: ``[H, W]`` bool.

        Raises:
            NoDepthError: there is no depth, or too little under this mask.
        """
        if self.depth is None or self.intrinsics is None:
            raise NoDepthError(self.reason)
        found = locate(mask, self.depth, self.intrinsics)
        return found if self.transform is None else self.transform.apply(found)


class DepthMatcher:
    """Keeps the last depth images and the last camera info, serialized. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._depths: deque[tuple[int, bytes]] = deque(maxlen=_KEPT)
        self._info: bytes | None = None

    def clear(self) -> None:
        """Discard depth images and camera info."""
        with self._changed:
            self._depths.clear()
            self._info = None

    def put_depth(self, serialized: bytes) -> None:
        """Store a serialized depth image.

        Raises:
            struct.error: the message is too short to hold a stamp.
        """
        order = "<" if serialized[1] & 1 else ">"  # byte order, from the CDR encapsulation before the header
        sec, nanosec = struct.unpack_from(f"{order}iI", serialized, 4)
        with self._changed:
            self._depths.append((sec * 10**9 + nanosec, serialized))
            self._changed.notify_all()

    def put_info(self, serialized: bytes) -> None:
        """Store a serialized camera info."""
        with self._changed:
            self._info = serialized
            self._changed.notify_all()

    def view(self, header: Header, height: int, width: int, *, tolerance: float, max_pixels: int) -> View:
        """Depth and intrinsics of an image; errors become the ``reason`` of the result.

        Args:
            header: of the image.
            height: of the image, pixels.
            width: of the image, pixels.
            tolerance: maximum difference between the stamps of image and depth, seconds.
            max_pixels: largest accepted depth image.
        """
        try:
            info, serialized = self._pair(header.stamp.sec * 10**9 + header.stamp.nanosec, tolerance)
            intrinsics = _intrinsics(_read(info, CameraInfo, "camera info"), height, width)
            message = _read(serialized, Image, "depth image")
            if message.header.frame_id != header.frame_id:
                frames = f"expected {header.frame_id!r} as the image, got {message.header.frame_id!r}"
                raise NoDepthError(f"the depth is in another frame: {frames} (is it registered to the image?)")
            depth = depth_from_message(message, max_pixels)
            if depth.shape != (height, width):
                sizes = f"expected {width}x{height}, got {depth.shape[1]}x{depth.shape[0]}"
                raise NoDepthError(f"the depth has another size than the image: {sizes} (is it registered to the image?)")
            return View(depth, intrinsics)
        except (NoDepthError, BadImageError) as error:
            return View(reason=str(error))

    def _pair(self, stamp: int, tolerance: float) -> tuple[bytes, bytes]:
        with self._changed:
            if not self._depths:
                raise NoDepthError("no depth image has arrived yet")
            if self._info is None:
                raise NoDepthError("no camera info has arrived yet")
            limit = round(tolerance * 1e9)
            self._changed.wait_for(lambda: abs(self._depths[-1][0] - stamp) <= limit or self._depths[-1][0] > stamp, _WAIT)
            nearest, serialized = min(self._depths, key=lambda entry: abs(entry[0] - stamp))
            if (gap := abs(nearest - stamp)) > limit:
                apart = f"expected one within {tolerance:g} s (depth_tolerance), the nearest is {gap * 1e-9:.3f} s away"
                raise NoDepthError(f"no depth of the image's time: {apart}")
            return self._info, serialized


def _read(serialized: bytes, kind: type[T], name: str) -> T:
    try:
        return deserialize_message(serialized, kind)
    except Exception as error:
        raise NoDepthError(f"the newest {name} is malformed") from error


def _intrinsics(info: CameraInfo, height: int, width: int) -> np.ndarray:
    """Camera matrix of the image: that of the rectified image if the message has a projection matrix."""
    if (info.height, info.width) != (height, width):
        sizes = f"expected {width}x{height}, got {info.width}x{info.height}"
        raise NoDepthError(f"the camera info is of another size than the image: {sizes}")
    projection = np.array(info.p, np.float64).reshape(3, 4)[:, :3]
    matrix = projection if projection[0, 0] > 0 else np.array(info.k, np.float64).reshape(3, 3)
    if not np.isfinite(matrix).all() or matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
        raise NoDepthError(f"the camera info has no focal length: expected fx, fy > 0, got {matrix[0, 0]:g}, {matrix[1, 1]:g}")
    return matrix
