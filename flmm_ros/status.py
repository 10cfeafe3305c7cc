"""The state of the grounding node: published on ~/status, latched, and passed on to its health."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from rclpy.node import Node

from flmm_core.common.plain_text import one_line
from flmm_core.serving.health import Health
from flmm_ros import qos
from flmm_ros.msg import NodeStatus

_STATES = {
    NodeStatus.UNCONFIGURED: "unconfigured",
    NodeStatus.LOADING: "loading the model",
    NodeStatus.INACTIVE: "inactive",
    NodeStatus.READY: "ready",
    NodeStatus.FAILED: "failed",
    NodeStatus.FINALIZED: "shut down",
}


class Status:
    """State and message of the node. Thread-safe.

    Args:
        node: publishes.
        health: told of every change.
        watched: returns the phrases of the watch list.
    """

    def __init__(self, node: Node, *, health: Health, watched: Callable[[], Sequence[str]]) -> None:
        self._node = node
        self._health = health
        self._watched = watched
        self._lock = threading.RLock()
        self._hangs = ""
        self.state = NodeStatus.UNCONFIGURED
        """Value of NodeStatus; that a model hangs is no state of the node."""
        self.message = ""
        self._publisher = node.create_publisher(NodeStatus, "~/status", qos.latched())
        self.publish()

    def enter(self, state: int, message: str = "") -> None:
        """Change the state; no other follows after FINALIZED."""
        with self._lock:
            if self.state == NodeStatus.FINALIZED:
                return
            self.state, self.message = state, message
            self._health.enter(_STATES[state], message)
            self.publish()

    def hangs(self, reason: str) -> None:
        """The model hangs; with an empty reason, it has returned."""
        with self._lock:
            self._hangs = reason
            self._health.hangs(reason)
            self.publish()
        if reason:
            self._node.get_logger().error(reason)
        else:
            self._node.get_logger().warning("the model has returned")

    def publish(self) -> None:
        """Publish what holds now, for instance after the watch list was replaced."""
        with self._lock:
            state, message = self.state, self.message
            if state == NodeStatus.READY and self._hangs:
                state, message = NodeStatus.UNRESPONSIVE, self._hangs
            try:
                now = self._node.get_clock().now().to_msg()
                watched = list(self._watched())
                self._publisher.publish(NodeStatus(stamp=now, state=state, message=message, watched=watched))
            except Exception as error:
                self._node.get_logger().error(f"no status: {one_line(error)}")
