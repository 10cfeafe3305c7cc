"""The topics that accompany an answer, for people and other nodes: label map, overlay, points, markers, detections."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rclpy.node import Node
from rclpy.publisher import Publisher
from sensor_msgs.msg import Image, PointCloud2
from visualization_msgs.msg import MarkerArray

from flmm_core.common.plain_text import one_line
from flmm_core.drawing.overlay import draw_overlay
from flmm_core.serving.requests import Reply
from flmm_ros import detections, markers, qos
from flmm_ros.commands import Located, located_header
from flmm_ros.conversions.answers import label_map
from flmm_ros.conversions.geometry import points_message
from flmm_ros.conversions.images import image_message
from flmm_ros.msg import GroundedAnswer

_DRAWN = frozenset({"overlay", "markers"})
"""For people: computed only while the topic has a subscriber."""
_LATCHED = frozenset({"label_info"})


class Outputs:
    """Publishes what accompanies an answer. The reply was sent before; errors here are logged and refuse nothing."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._publishers: dict[str, Publisher[Any]] = {}
        for name, kind in kinds().items():
            profile = qos.latched() if name in _LATCHED else qos.images()
            self._publishers[name] = qos.create_publisher(node, kind, f"~/{name}", profile)
        if not detections.available():
            node.get_logger().info("vision_msgs is not installed: no ~/detections, ~/detections_3d and ~/label_info")

    def publish(self, message: GroundedAnswer, reply: Reply, located: Sequence[Located]) -> None:
        """Publish everything about an answer; see :func:`makers`.

        Args:
            message: the reply as it was sent.
            reply: an answer.
            located: the locations of its objects.
        """
        for name, make in makers(message, reply, located).items():
            publisher = self._publishers[name]
            if name in _DRAWN and publisher.get_subscription_count() == 0:
                continue
            try:
                publisher.publish(make())
            except Exception as error:
                self._node.get_logger().error(f"nothing on {publisher.topic_name}: {one_line(error)}")


def kinds() -> Mapping[str, type]:
    """Message types by topic, relative to the node's name."""
    found: dict[str, type] = {"label_mask": Image, "overlay": Image, "objects": PointCloud2, "markers": MarkerArray}
    if detections.available():
        found |= {
            "detections": detections.Detection2DArray,
            "detections_3d": detections.Detection3DArray,
            "label_info": detections.LabelInfo,
        }
    return found


def makers(message: GroundedAnswer, reply: Reply, located: Sequence[Located]) -> Mapping[str, Callable[[], Any]]:
    """Functions that build the messages about an answer, by topic as in :func:`kinds`; they compute when called.

    Args:
        message: the reply as it was sent.
        reply: an answer.
        located: the locations of its objects.
    """
    answer, image, header = reply.answer, reply.image, message.header
    assert answer is not None and image is not None

    def overlay() -> Image:
        drawn = draw_overlay(image.pixels, answer, command=message.command)
        return image_message(drawn, "rgb8", header)

    points = [(label, place.points) for label, place in located]
    found: dict[str, Callable[[], Any]] = {
        "label_mask": lambda: label_map(answer, header),
        "overlay": overlay,
        "objects": lambda: points_message(points, located_header(message)),
        "markers": lambda: markers.markers_message(message),
    }
    if detections.available():
        found |= {
            "detections": lambda: detections.detections_2d(message),
            "detections_3d": lambda: detections.detections_3d(message),
            "label_info": lambda: detections.label_info(message),
        }
    return found
