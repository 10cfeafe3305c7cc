"""Whether a camera's images arrive: rates received and expected, and what helps with the middleware in use."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from rclpy.node import Node
from rclpy.utilities import get_rmw_implementation_identifier

from flmm_ros.middleware import LARGE_IMAGES, PROFILES_VARIABLE

_REMEMBERED = 30
"""Number of last messages from which a rate is computed."""
_FAST_DDS = f"Fast DDS loses large images, unless the camera runs with {PROFILES_VARIABLE}={LARGE_IMAGES}"
_HINTS = {
    "rmw_fastrtps_cpp": _FAST_DDS,
    "rmw_fastrtps_dynamic_cpp": _FAST_DDS,
    "rmw_cyclonedds_cpp": "Cyclone DDS loses large images, unless the receive buffers of the system hold them:"
    " sudo sysctl -w net.core.rmem_max=2147483647, and SocketReceiveBufferSize in CYCLONEDDS_URI",
}
"""What helps against lost images, by the identifier of the middleware."""
_OTHER = "try image_transport:=compressed, or the override of reliability to reliable"


@dataclass(frozen=True)
class Rates:
    """Rates of a camera's images, in Hz by the node's clock."""

    received: float
    expected: float
    """That of the camera infos, which are small and sent with each image; else by the times between the stamps of successive
    images (their lower quartile, as lost images make them longer); 0 if neither is known."""

    def __str__(self) -> str:
        expected = f" of {self.expected:.1f} Hz expected" if self.expected else ""
        return f"{self.received:.2f} images a second arrive{expected}"


class Delivery:
    """Counts the messages of a camera. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._images: deque[tuple[int, int]] = deque(maxlen=_REMEMBERED)
        """Arrival and stamp, nanoseconds; the stamp is 0 if the camera sets none."""
        self._infos: deque[int] = deque(maxlen=_REMEMBERED)

    def image(self, now: int, stamp: int) -> None:
        """Count an image that arrived ``now``; both are in nanoseconds of the node's clock."""
        with self._lock:
            if self._images and now < self._images[-1][0]:
                self._images.clear()  # the clock was set back, as by a bag that begins again
            self._images.append((now, stamp))

    def info(self, now: int) -> None:
        """Count a camera info."""
        with self._lock:
            if self._infos and now < self._infos[-1]:
                self._infos.clear()
            self._infos.append(now)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._images.clear()
            self._infos.clear()

    def rates(self, now: int) -> Rates:
        """The rates at a time of the node's clock, nanoseconds; they fall while nothing arrives."""
        with self._lock:
            received = _rate([arrival for arrival, _ in self._images], now)
            if len(self._infos) > 1:
                return Rates(received, _rate(self._infos, now))
            stamps = [stamp for _, stamp in self._images if stamp > 0]
        gaps = sorted(later - earlier for earlier, later in pairwise(stamps) if later > earlier)
        return Rates(received, 1e9 / gaps[len(gaps) // 4] if gaps else 0.0)


def _rate(arrivals: Sequence[int], now: int) -> float:
    """Messages per second over their arrivals in nanoseconds."""
    return 1e9 * (len(arrivals) - 1) / max(now - arrivals[0], 1) if len(arrivals) > 1 else 0.0


def transport_hint() -> str:
    """What helps against lost images with the middleware in use."""
    return _HINTS.get(get_rmw_implementation_identifier(), _OTHER)


def why_missing(node: Node, topic: str, kind: type) -> str:
    """Why no images arrive: nobody publishes them, or messages of another type, or the middleware loses them.

    Args:
        node: that subscribes.
        topic: full name of the image topic.
        kind: type of its messages.
    """
    publishers = node.count_publishers(topic)
    if not publishers:
        return f"no node publishes {topic}"
    wrong = wrong_type(node, topic, kind, "image_transport")
    return wrong or f"publishers of {topic} exist: {publishers} ({transport_hint()})"


def wrong_type(node: Node, topic: str, kind: type, parameter: str) -> str:
    """A line about a topic all of whose publishers send messages of another type; empty if there are none, or others.

    Args:
        node: that subscribes.
        topic: full name.
        kind: the expected type.
        parameter: that chooses it.
    """
    kinds = {publisher.topic_type for publisher in node.get_publishers_info_by_topic(topic)}
    expected = f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}"
    if not kinds or expected in kinds:
        return ""
    return f"expected publishers of {expected} on {topic}, got {', '.join(sorted(kinds))} (is {parameter} right?)"
