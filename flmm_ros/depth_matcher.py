"""Matches depth images and camera infos to camera images by their stamps.

The depth of an image is looked up before the model processes the image: when a slow model has answered, newer depth images
would have replaced it.
"""

from __future__ import annotations

import re
import threading
from collections import deque
from dataclasses import dataclass, replace
from typing import TypeAlias, TypeVar

import numpy as np
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header

from flmm_core.common.plain_text import one_line
from flmm_core.spatial.camera import CameraError, Distortion, check_intrinsics
from flmm_core.spatial.location import Location, NoDepthError, locate
from flmm_ros.conversions.depth import depth_from_compressed, depth_from_message
from flmm_ros.conversions.images import BadImageError
from flmm_ros.frames import Lookup, Transform
from flmm_ros.stamps import stamp_of

T = TypeVar("T")
DepthMessage: TypeAlias = Image | CompressedImage

NO_DEPTH = "no depth image has arrived yet"
"""The reason of a view before the first depth image."""
_KEPT = 8
"""Number of depth images that are kept, serialized: more than arrive while one camera image is in transit."""
_WAIT = 0.2
"""Seconds to wait for the depth of an image, if any depth has arrived before."""
_RECTIFIED = re.compile(r"(?:^|[/_])rect(?:ified)?(?:[/_]|$)")
_COEFFICIENTS = 8
"""Number of coefficients of a lens in use; some drivers add others, which are 0."""


def is_rectified(topic: str) -> bool:
    """Whether the images of a topic are rectified, by its name: image_proc calls them ``image_rect``, ``image_rect_color``."""
    return _RECTIFIED.search(topic) is not None


@dataclass(frozen=True)
class View:
    """Depth and intrinsics of one image, or the reason why there are none."""

    depth: np.ndarray | None = None
    """``[H, W]`` float32 metres; NaN where there is none."""
    intrinsics: np.ndarray | None = None
    """``[3, 3]`` pinhole matrix, pixels."""
    distortion: Distortion | None = None
    """Of the lens; None for a rectified image."""
    reason: str = ""
    """Why there is no depth; empty if there is."""
    lookup: Lookup | None = None
    """Finds the transform to the frame of the locations; None for the frame of the image."""
    transform: Transform | None = None
    """What :attr:`lookup` has found."""

    def settled(self) -> View:
        """The view with its transform, which is waited for; without one, the reason is that of the result."""
        if self.lookup is None:
            return self
        try:
            return replace(self, lookup=None, transform=self.lookup.result())
        except NoDepthError as error:
            return View(reason=one_line(error))

    def locate(self, mask: np.ndarray) -> Location:
        """As :func:`flmm_core.spatial.location.locate`, in the frame of the locations of a settled view.

        Args:
            mask: ``[H, W]`` bool.

        Raises:
            NoDepthError: there is no depth, or too little under this mask.
        """
        if self.depth is None or self.intrinsics is None:
            raise NoDepthError(self.reason)
        found = locate(mask, self.depth, self.intrinsics, self.distortion)
        return found if self.transform is None else self.transform.apply(found)


@dataclass(frozen=True)
class _Depth:
    """A depth image as it came."""

    stamp: int
    """Nanoseconds."""
    kind: type[DepthMessage]
    serialized: bytes


class DepthMatcher:
    """Keeps the last depth images and the last camera info, serialized. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._depths: deque[_Depth] = deque(maxlen=_KEPT)
        self._info: bytes | None = None

    def clear(self) -> None:
        """Discard depth images and camera info."""
        with self._changed:
            self._depths.clear()
            self._info = None
            self._changed.notify_all()

    def put_depth(self, serialized: bytes, kind: type[DepthMessage] = Image) -> None:
        """Store a serialized depth image.

        Raises:
            struct.error: the message is too short to hold a stamp.
        """
        stamp = stamp_of(serialized)
        with self._changed:
            self._depths.append(_Depth(stamp, kind, serialized))
            self._changed.notify_all()

    def put_info(self, serialized: bytes) -> None:
        """Store a serialized camera info."""
        with self._changed:
            self._info = serialized
            self._changed.notify_all()

    def view(self, header: Header, height: int, width: int, *, tolerance: float, max_pixels: int, rectified: bool) -> View:
        """Depth and intrinsics of an image; errors become the ``reason`` of the result.

        Args:
            header: of the image.
            height: of the image, pixels.
            width: of the image, pixels.
            tolerance: maximum difference between the stamps of image and depth, seconds.
            max_pixels: largest accepted depth image.
            rectified: whether the image is; see :func:`is_rectified`.
        """
        try:
            serialized, found = self._pair(header.stamp.sec * 10**9 + header.stamp.nanosec, tolerance)
            intrinsics, distortion = _camera(_read(serialized, CameraInfo, "camera info"), height, width, rectified)
            message = _read(found.serialized, found.kind, "depth image")
            if message.header.frame_id != header.frame_id:
                frames = f"expected {header.frame_id!r} as the image, got {message.header.frame_id!r}"
                raise NoDepthError(f"the depth is in another frame: {frames} (is it registered to the image?)")
            read = depth_from_message if isinstance(message, Image) else depth_from_compressed
            depth = read(message, max_pixels)
            if depth.shape != (height, width):
                sizes = f"expected {width}x{height}, got {depth.shape[1]}x{depth.shape[0]}"
                raise NoDepthError(f"the depth has another size than the image: {sizes} (is it registered to the image?)")
            return View(depth, intrinsics, distortion)
        except (NoDepthError, CameraError, BadImageError) as error:
            return View(reason=one_line(error))

    def _pair(self, stamp: int, tolerance: float) -> tuple[bytes, _Depth]:
        """The camera info, and the depth image nearest to a stamp in nanoseconds."""
        limit = round(tolerance * 1e9)

        def settled() -> bool:
            last = self._depths[-1].stamp if self._depths else None  # they may be cleared while this waits
            return last is None or abs(last - stamp) <= limit or last > stamp

        with self._changed:
            self._changed.wait_for(settled, _WAIT)
            if not self._depths:
                raise NoDepthError(NO_DEPTH)
            if self._info is None:
                raise NoDepthError("no camera info has arrived yet")
            # Of equally near ones the newest, as of a camera that sets no stamps.
            nearest = min(reversed(self._depths), key=lambda depth: abs(depth.stamp - stamp))
            if (gap := abs(nearest.stamp - stamp)) > limit:
                apart = f"expected one within {tolerance:g} s (depth_tolerance), the nearest is {gap * 1e-9:.3f} s away"
                raise NoDepthError(f"no depth of the image's time: {apart}")
            return self._info, nearest


def _read(serialized: bytes, kind: type[T], name: str) -> T:
    try:
        return deserialize_message(serialized, kind)
    except Exception as error:
        raise NoDepthError(f"the newest {name} is malformed") from error


def _camera(info: CameraInfo, height: int, width: int, rectified: bool) -> tuple[np.ndarray, Distortion | None]:
    """Matrix and distortion of an image: P of a rectified one, K and ``d`` of any other; either where the other is not set."""
    if (info.height, info.width) != (height, width):
        sizes = f"expected {width}x{height}, got {info.width}x{info.height}"
        raise NoDepthError(f"the camera info is of another size than the image: {sizes}")
    raw, projection = np.array(info.k, np.float64).reshape(3, 3), np.array(info.p, np.float64).reshape(3, 4)[:, :3]
    is_projection = projection[0, 0] != 0 and (rectified or raw[0, 0] == 0)
    matrix = projection if is_projection else raw
    check_intrinsics(matrix, height, width)
    coefficients = np.array(info.d, np.float64)
    if rectified or is_projection or not coefficients.any():
        return matrix, None
    used = coefficients if coefficients[_COEFFICIENTS:].any() else coefficients[:_COEFFICIENTS]
    return matrix, Distortion(info.distortion_model, used)
