"""The topics of watch lists: a list on ~/watch becomes a watch request, its results are published on ~/watched."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from rclpy.node import Node
from rclpy.subscription import MessageInfo

from flmm_core.common.plain_text import one_line, printable
from flmm_core.serving.health import Health
from flmm_core.serving.requests import Mode, RefusedError, Reply, clean_text
from flmm_core.serving.server import GroundingServer
from flmm_core.serving.watch import WatchRequest
from flmm_ros import commands, parameters, qos
from flmm_ros.commands import Command
from flmm_ros.image_buffer import ImageBuffer
from flmm_ros.msg import GroundedAnswer
from flmm_ros.outputs import Outputs


class WatchHandler:
    """Passes watch lists to the server, and publishes their results.

    Args:
        node: publishes; its parameters limit lists and rates.
        server: processes the list.
        images: provides the newest image.
        outputs: publishes what accompanies a result.
        health: counts results.
        changed: called when the list was replaced.
    """

    def __init__(
        self,
        node: Node,
        *,
        server: GroundingServer,
        images: ImageBuffer,
        outputs: Outputs,
        health: Health,
        changed: Callable[[], None],
    ) -> None:
        self._node = node
        self._server = server
        self._images = images
        self._outputs = outputs
        self._health = health
        self._changed = changed
        self._results = qos.create_publisher(node, GroundedAnswer, "~/watched", qos.images())

    def on_message(self, serialized: bytes, _: MessageInfo) -> None:
        """Replace the list; an empty one ends watching. A list that cannot be used is refused on ~/watched."""
        try:
            longest, most = (parameters.value(self._node, name) for name in ("max_command_length", "max_phrases"))
            phrases = tuple(clean_text(text, longest) for text in commands.decode_phrases(serialized, most))
            self._server.watch(self._request(phrases) if phrases else None)
        except RefusedError as refusal:
            self._publish(Command(0, Mode.WATCH, ""), Reply(refusal.status, refusal.reason, began=time.monotonic()))
            return
        except Exception as error:
            self._node.get_logger().error(f"watch list dropped: {one_line(error)}")
            return
        self._changed()
        self._node.get_logger().info(f"watching: {printable(', '.join(phrases)) or 'nothing'}")

    def _request(self, phrases: tuple[str, ...]) -> WatchRequest:
        return WatchRequest(
            phrases,
            image=self._images.newest,
            result=partial(self._publish, Command(0, Mode.WATCH, commands.joined(phrases))),
            period=lambda: 1.0 / parameters.value(self._node, "watch_rate", float),
            refresh=lambda: parameters.value(self._node, "watch_refresh", float),
        )

    def _publish(self, command: Command, reply: Reply) -> None:
        """Publish a result; called in the server's thread, and in the executor's for a list that is refused."""
        try:
            message, located = commands.node_reply(self._node, command, reply)
            self._results.publish(message)
        except Exception as error:
            self._node.get_logger().error(f"nothing on ~/watched: {one_line(error)}", throttle_duration_sec=1.0)
            return
        if reply.answer is None:
            self._node.get_logger().warning(f"watching: {printable(reply.reason)}")
            return
        self._health.watched(reply.tracked)
        self._outputs.publish(message, reply, located)
