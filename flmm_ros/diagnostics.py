"""Publishes the node's health on /diagnostics once a second, from a thread of its own."""

from __future__ import annotations

import threading

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node
from std_msgs.msg import Header

from flmm_core.common.plain_text import one_line
from flmm_core.serving.health import Health, HealthReport, Level
from flmm_core.serving.server import GroundingServer
from flmm_ros import parameters, qos
from flmm_ros.image_buffer import ImageBuffer

_PERIOD = 1.0
"""Seconds between two messages."""
_LEVELS = {Level.OK: DiagnosticStatus.OK, Level.WARN: DiagnosticStatus.WARN, Level.ERROR: DiagnosticStatus.ERROR}


class DiagnosticsPublisher:
    """Publishes until :meth:`stop`.

    It has its own thread, because diagnostics are needed most when the executor hangs.

    Args:
        node: publishes; its parameters say what is a warning.
        health: reports state and counts.
        server: reports the length of its queue and the memory of the device.
        images: reports how the camera's images arrive.
    """

    def __init__(self, node: Node, *, health: Health, server: GroundingServer, images: ImageBuffer) -> None:
        self._node = node
        self._health = health
        self._server = server
        self._images = images
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", qos.diagnostics())
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="diagnostics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Publish no more."""
        self._stopped.set()
        self._thread.join(_PERIOD)

    def _run(self) -> None:
        while not self._stopped.wait(_PERIOD):
            try:
                self._publish()
            except Exception as error:
                self._node.get_logger().error(f"no diagnostics: {one_line(error)}")

    def _publish(self) -> None:
        node = self._node
        report = self._health.report(
            waiting=self._server.waiting,
            working=self._server.working,
            capacity=parameters.value(node, "queue_size"),
            camera=self._images.health(),
            oldest_image=parameters.value(node, "max_image_age", float),
            slow_answer=parameters.value(node, "slow_answer", float),
            device_memory=self._server.device_memory(),
        )
        status = diagnostic_status(node.get_fully_qualified_name(), report)
        header = Header(stamp=node.get_clock().now().to_msg())
        self._publisher.publish(DiagnosticArray(header=header, status=[status]))


def diagnostic_status(name: str, report: HealthReport) -> DiagnosticStatus:
    """Convert a health report to a message.

    Args:
        name: full name of the node.
        report: its health.
    """
    return DiagnosticStatus(
        level=_LEVELS[report.level],
        name=f"{name}: grounding",
        message=report.message,
        hardware_id=report.values.get("device", ""),
        values=[KeyValue(key=key, value=value) for key, value in report.values.items()],
    )
