"""What goes out with a reply, for people and for other nodes: label map, overlay, points, markers, detections."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from rclpy.node import Node
from rclpy.publisher import Publisher
from sensor_msgs.msg import Image, PointCloud2
from visualization_msgs.msg import MarkerArray

from flmm_core.drawing.overlay import draw_overlay
from flmm_core.plain_text import one_line
from flmm_core.serving.requests import Reply
from flmm_ros import conversions, detections, markers, qos
from flmm_ros.commands import Located, located_header
from flmm_ros.msg import GroundedAnswer


class Outputs:
    """Publishers beside that of the replies. A reply is out before: what goes wrong here is logged, and no refusal."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._label_maps = self._publisher(Image, "~/label_mask")
        self._overlays = self._publisher(Image, "~/overlay")
        self._clouds = self._publisher(PointCloud2, "~/objects")
        self._markers = self._publisher(MarkerArray, "~/markers")
        self._detections = self._detections_3d = self._label_info = None
        if detections.available():
            self._detections = self._publisher(detections.Detection2DArray, "~/detections")
            self._detections_3d = self._publisher(detections.Detection3DArray, "~/detections_3d")
            self._label_info = node.create_publisher(detections.LabelInfo, "~/label_info", qos.latched())
        else:
            node.get_logger().info("vision_msgs is not installed: no ~/detections, ~/detections_3d and ~/label_info")

    def _publisher(self, kind: type, topic: str) -> Publisher:
        return qos.create_publisher(self._node, kind, topic, qos.images())

    def publish(self, message: GroundedAnswer, reply: Reply, located: Sequence[Located]) -> None:
        """Everything about an answer.

        Args:
            message: the reply as it was sent.
            reply: an answer.
            located: where its things are.
        """
        answer, picture, header = reply.answer, reply.picture, message.header
        assert answer is not None and picture is not None
        self._send(self._label_maps, lambda: conversions.label_map(answer, header))
        if wanted(self._overlays):

            def drawn() -> Image:
                overlay = draw_overlay(picture.pixels, answer, command=message.command)
                return conversions.image_message(overlay, "rgb8", header)

            self._send(self._overlays, drawn)
        points = [(label, place.points) for label, place in located]
        self._send(self._clouds, lambda: conversions.points_message(points, located_header(message)))
        if wanted(self._markers):
            self._send(self._markers, lambda: markers.markers_message(message))
        if self._detections is not None:
            self._send(self._detections, lambda: detections.detections_2d(message))
            self._send(self._detections_3d, lambda: detections.detections_3d(message))
            self._send(self._label_info, lambda: detections.label_info(message))

    def _send(self, publisher: Publisher | None, make: Callable[[], Any]) -> None:
        if publisher is None:
            return
        try:
            publisher.publish(make())
        except Exception as error:
            self._node.get_logger().error(f"nothing on {publisher.topic_name}: {one_line(error)}")


def wanted(publisher: Publisher) -> bool:
    """Whether anybody subscribes."""
    return bool(publisher.get_subscription_count() > 0)
