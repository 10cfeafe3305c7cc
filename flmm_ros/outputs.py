"""What goes out with an answer, for people and for other nodes: label map, overlay, points, markers, detections."""

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
from flmm_ros import conversions, detections, markers, qos
from flmm_ros.commands import Located, located_header
from flmm_ros.msg import GroundedAnswer

_DRAWN = frozenset({"overlay", "markers"})
"""For people: made while somebody looks."""
_LATCHED = frozenset({"label_info"})


class Outputs:
    """Publishers beside that of the replies. A reply is out before: what goes wrong here is logged, and no refusal."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._publishers: dict[str, Publisher[Any]] = {}
        for name, kind in kinds().items():
            profile = qos.latched() if name in _LATCHED else qos.images()
            self._publishers[name] = qos.create_publisher(node, kind, f"~/{name}", profile)
        if not detections.available():
            node.get_logger().info("vision_msgs is not installed: no ~/detections, ~/detections_3d and ~/label_info")

    def publish(self, message: GroundedAnswer, reply: Reply, located: Sequence[Located]) -> None:
        """Everything about an answer; see :func:`makers`."""
        for name, make in makers(message, reply, located).items():
            publisher = self._publishers[name]
            if name in _DRAWN and publisher.get_subscription_count() == 0:
                continue
            try:
                publisher.publish(make())
            except Exception as error:
                self._node.get_logger().error(f"nothing on {publisher.topic_name}: {one_line(error)}")


def kinds() -> Mapping[str, type]:
    """Of the messages, by topic below the name of the node."""
    found: dict[str, type] = {"label_mask": Image, "overlay": Image, "objects": PointCloud2, "markers": MarkerArray}
    if detections.available():
        found |= {
            "detections": detections.Detection2DArray,
            "detections_3d": detections.Detection3DArray,
            "label_info": detections.LabelInfo,
        }
    return found


def makers(message: GroundedAnswer, reply: Reply, located: Sequence[Located]) -> Mapping[str, Callable[[], Any]]:
    """What makes each message about an answer, by topic as :func:`kinds` has them.

    Args:
        message: the reply as it was sent.
        reply: an answer.
        located: where its things are.
    """
    answer, picture, header = reply.answer, reply.picture, message.header
    assert answer is not None and picture is not None

    def overlay() -> Image:
        drawn = draw_overlay(picture.pixels, answer, command=message.command)
        return conversions.image_message(drawn, "rgb8", header)

    points = [(label, place.points) for label, place in located]
    found: dict[str, Callable[[], Any]] = {
        "label_mask": lambda: conversions.label_map(answer, header),
        "overlay": overlay,
        "objects": lambda: conversions.points_message(points, located_header(message)),
        "markers": lambda: markers.markers_message(message),
    }
    if detections.available():
        found |= {
            "detections": lambda: detections.detections_2d(message),
            "detections_3d": lambda: detections.detections_3d(message),
            "label_info": lambda: detections.label_info(message),
        }
    return found
