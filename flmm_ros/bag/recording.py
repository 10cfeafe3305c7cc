"""What a recording holds: where each image, depth image and camera info is, over all its files.

The whole recording is read once before anything is grounded; the messages about one image are then read at their places. So the
depth of an image is found wherever it was recorded, and only the messages about one image are in memory.
"""

from __future__ import annotations

import bisect
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from flmm_ros.bag.files import Place, read_at, read_places
from flmm_ros.bag.formats import COMPRESSED_ONE_BY_ONE, FROM_ROS_1, ZSTD, BagError, files_of
from flmm_ros.stamps import stamp_of

IMAGE, COMPRESSED_IMAGE = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
IMAGES = (IMAGE, COMPRESSED_IMAGE)
CAMERA_INFO = "sensor_msgs/msg/CameraInfo"
_NOT_CAMERAS = ("depth", "disparity", "label", "mask", "overlay")
"""Parts of the names of image topics that do not belong to a camera."""
_NAMED = 20
"""Most topics that a message names."""


@dataclass(frozen=True, order=True)
class Entry:
    """One message of a recording. Entries are ordered by their stamps, then by the times at which they were recorded."""

    stamp: int
    """Of its header, nanoseconds."""
    log_time: int
    """Nanoseconds."""
    kind: str
    """For instance sensor_msgs/msg/Image."""
    place: Place = field(compare=False)


@dataclass(frozen=True)
class Topics:
    """Topics of the images and, unless empty, of their depth and camera info."""

    image: str
    depth: str = ""
    camera_info: str = ""


class Recording:
    """Images, depth images and camera infos of a bag.

    Args:
        path: an MCAP file, or a folder of several.
        warn: called with a line about each part that is damaged.

    Raises:
        BagError: it cannot be read, or is in another format.
    """

    def __init__(self, path: Path, warn: Callable[[str], None] = lambda text: None) -> None:
        self._path = path
        self._kinds: dict[str, str] = {}
        self._entries: dict[str, list[Entry]] = {}
        self._data = lru_cache(maxsize=3)(read_at)  # image, depth and camera info of one time are often in one chunk
        too_short = 0
        self.size = 0
        """Bytes of all files."""
        for file in files_of(path):
            for place, recorded in read_places(file, warn):
                name = recorded.kind if recorded.encoding == "cdr" else f"{recorded.kind} as {recorded.encoding}"
                self._kinds.setdefault(recorded.topic, name)
                if name not in (*IMAGES, CAMERA_INFO):
                    continue
                if recorded.data.startswith(ZSTD):
                    raise BagError(f"{path}: expected messages of ROS 2, got {COMPRESSED_ONE_BY_ONE}")
                try:
                    entry = Entry(stamp_of(recorded.data), recorded.log_time, name, place)
                except struct.error:
                    too_short += 1
                    continue
                self._entries.setdefault(recorded.topic, []).append(entry)
            self.size += file.stat().st_size
        if too_short:
            warn(f"{path}: {too_short} messages are left out: too short to hold a stamp")

    def choose(self, image: str, depth: str, camera_info: str) -> Topics:
        """The topics that are used.

        Args:
            image: of the images; empty for the only one that looks like a camera's.
            depth: of their depth; empty for none.
            camera_info: of the camera's intrinsics; empty for none.

        Raises:
            BagError: the recording has no such topic, or several.
        """
        images = self._of(*IMAGES)
        if not images:
            raise BagError(f"{self._path}: {self._no_images()}")
        cameras = [topic for topic in images if not any(part in topic for part in _NOT_CAMERAS)]
        if not image and len(cameras) != 1:
            got = _listed(cameras or images)
            raise BagError(f"{self._path}: expected one topic of images, got {got}; choose one with --image")
        image = image or cameras[0]
        choices = [("--image", image, images), ("--depth", depth, [topic for topic in images if topic != image])]
        for option, wanted, known in [*choices, ("--camera-info", camera_info, self._of(CAMERA_INFO))]:
            if wanted and wanted not in known:
                raise BagError(f"{option}: expected one of {_listed(known) or 'no topic at all'}, got {wanted}")
        return Topics(image, depth, camera_info)

    def entries(self, topic: str) -> Sequence[Entry]:
        """The messages of a topic in the order in which they were written."""
        return self._entries.get(topic, [])

    def data(self, entry: Entry) -> bytes:
        """A message, serialized (CDR).

        Raises:
            BagError: it cannot be read any more.
        """
        messages = self._data(entry.place.path, entry.place.offset)
        if entry.place.number >= len(messages):
            raise BagError(f"{entry.place.path}: has changed while it was read")
        return messages[entry.place.number]

    def _of(self, *kinds: str) -> list[str]:
        return sorted(topic for topic, entries in self._entries.items() if entries[0].kind in kinds)

    def _no_images(self) -> str:
        others = {topic: kind for topic, kind in self._kinds.items() if kind.split(" as ")[0].endswith("Image")}
        got = _listed([f"{topic} ({kind})" for topic, kind in (others or self._kinds).items()]) or "no message at all"
        expected = f"expected images of ROS 2 ({IMAGE} or {COMPRESSED_IMAGE} as cdr), got {got}"
        return f"{expected}; {FROM_ROS_1}" if any(kind.endswith(" as ros1") for kind in others.values()) else expected


class Nearest:
    """Finds the messages of a topic around a time."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = sorted(entries)

    def around(self, entry: Entry) -> list[Entry]:
        """The last message before an image and the first one after it, by their stamps; one or none where there are no more."""
        after = bisect.bisect_left(
            self._entries, (entry.stamp, entry.log_time), key=lambda found: (found.stamp, found.log_time)
        )
        return self._entries[max(0, after - 1) : after + 1]

    def nearest(self, entry: Entry) -> Entry | None:
        """The message nearest to an image by its stamp; None if there is none."""
        return min(self.around(entry), key=lambda found: abs(found.stamp - entry.stamp), default=None)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
