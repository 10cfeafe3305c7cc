"""A client of the node: sends one command and waits for its reply."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TypeVar

import rclpy
from rcl_interfaces.srv import ListParameters
from rclpy.client import Client
from rclpy.executors import SingleThreadedExecutor
from rclpy.task import Future
from sensor_msgs.msg import Image
from std_msgs.msg import String

from flmm_ros import qos
from flmm_ros.msg import GroundedAnswer, NodeStatus

T = TypeVar("T")

_PING = 1.0
"""Seconds after which a question about the way back is asked again."""
_STATES = {
    NodeStatus.UNCONFIGURED: "is not configured",
    NodeStatus.LOADING: "is still loading its model",
    NodeStatus.INACTIVE: "is not active",
    NodeStatus.READY: "does not answer",
    NodeStatus.FAILED: "has failed",
}
_ROUNDING = 1000
"""Nanoseconds by which a stamp may differ from the clock that it was read from: middlewares keep binary fractions."""


class NoReplyError(RuntimeError):
    """Nothing came in time; the message says what was waited for."""


class AskClient:
    """Talks to a grounding node. Use it in a ``with`` statement, from one thread.

    Args:
        node: full name of the grounding node; its ``command`` and ``phrase`` topics are looked for in its namespace.
    """

    def __init__(self, node: str = "/grounding") -> None:
        namespace = node.rsplit("/", 1)[0]
        self.node_name = node
        self._context = rclpy.Context()
        rclpy.init(context=self._context, args=[])
        self.node = rclpy.create_node("flmm_ask", context=self._context, enable_rosout=False)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self.replies: list[GroundedAnswer] = []
        """Every reply of the node since the last :meth:`ask` began, other clients' included."""
        self._commands = self.node.create_publisher(String, f"{namespace}/command", qos.commands())
        self._phrases = self.node.create_publisher(String, f"{namespace}/phrase", qos.commands())
        self.node.create_subscription(GroundedAnswer, f"{node}/answer", self.replies.append, qos.commands())
        self.status: NodeStatus | None = None
        """What the node last said of itself."""
        self.node.create_subscription(NodeStatus, f"{node}/status", self._on_status, qos.latched())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Leave the graph."""
        self._executor.shutdown(timeout_sec=1.0)
        self.node.destroy_node()
        rclpy.try_shutdown(context=self._context)

    def _on_status(self, status: NodeStatus) -> None:
        self.status = status

    def collect_overlays(self) -> list[Image]:
        """From now on the node draws overlays for this client; they come into the returned list."""
        overlays: list[Image] = []
        self.node.create_subscription(Image, f"{self.node_name}/overlay", overlays.append, qos.images())
        return overlays

    def wait_for_node(self, timeout: float, meanwhile: Callable[[], None] | None = None) -> None:
        """Wait until commands and replies can travel.

        That this side sees the node does not mean that the node sees this side: a reply would be lost without a trace. A
        service is asked for that, with a client made after all else: the middleware announces endpoints in order, so that
        a node that can answer it knows every publisher and subscription here.

        Args:
            timeout: seconds.
            meanwhile: called now and then; may raise to give up early.

        Raises:
            NoReplyError: the node is not there, or not ready; says which.
        """

        def connected() -> bool:
            ends = (self._commands.get_subscription_count(), self._phrases.get_subscription_count())
            return min(*ends, self.node.count_publishers(f"{self.node_name}/answer")) > 0

        def absent() -> str:
            if self.status is not None:
                said = f" ({self.status.message})" if self.status.message else ""
                return f"{self.node_name} {_STATES[self.status.state]}{said}: waited {timeout:g} s"
            hint = "is it running, with the same ROS_DOMAIN_ID? (`make run` starts it)"
            return f"no node {self.node_name} within {timeout:g} s: {hint}"

        self.wait_until(connected, timeout, absent, meanwhile)
        ping: Client = self.node.create_client(ListParameters, f"{self.node_name}/list_parameters")
        try:
            self._ping(ping, timeout, meanwhile)
        finally:
            self.node.destroy_client(ping)

    def _ping(self, ping: Client, timeout: float, meanwhile: Callable[[], None] | None) -> None:
        answers: list[Future] = []
        asked = 0.0

        def answered() -> bool:
            nonlocal asked
            if time.monotonic() > asked + _PING and ping.service_is_ready():
                answers.append(ping.call_async(ListParameters.Request()))
                asked = time.monotonic()
            return any(answer.done() for answer in answers)

        def silent() -> str:
            found = f"asked {len(answers)} times" if answers else "the service was not found"
            return f"{self.node_name} is there but does not answer {ping.srv_name} within {timeout:g} s ({found})"

        self.wait_until(answered, timeout, silent, meanwhile)

    def wait_for_image(self, timeout: float, meanwhile: Callable[[], None] | None = None) -> GroundedAnswer:
        """Wait until commands are about an image: a node that is ready may not have found its camera yet.

        Args:
            timeout: seconds, also for the reply to each question that it asks.
            meanwhile: called now and then; may raise to give up early.

        Returns:
            The first reply that does not say that there is no image. It may be another refusal.

        Raises:
            NoReplyError: there is no image, or no reply; says which.
        """
        deadline = time.monotonic() + timeout
        while True:
            reply = self.ask("table", refer=True, timeout=timeout, meanwhile=meanwhile)
            if reply.status != GroundedAnswer.STATUS_NO_IMAGE:
                return reply
            if time.monotonic() > deadline:
                raise NoReplyError(f"{self.node_name} has no image after {timeout:g} s: {reply.reason}")
            self.spin(0.1)

    def ask(
        self, text: str, *, refer: bool = False, timeout: float = 60.0, meanwhile: Callable[[], None] | None = None
    ) -> GroundedAnswer:
        """Send a command, or with ``refer`` a phrase, and return its reply, which may be a refusal.

        Other clients may ask the same words: the reply is the one to a command that was published while this method was
        publishing, by this machine's clock.

        Raises:
            NoReplyError: nothing came within ``timeout`` seconds.
        """
        self.replies.clear()
        before = time.time_ns() - _ROUNDING
        (self._phrases if refer else self._commands).publish(String(data=text))
        after = time.time_ns() + _ROUNDING
        mode = GroundedAnswer.MODE_REFER if refer else GroundedAnswer.MODE_CHAT

        def is_mine(reply: GroundedAnswer) -> bool:
            sent = reply.command_stamp.sec * 10**9 + reply.command_stamp.nanosec
            return before <= sent <= after and reply.mode == mode and _is_about(reply, text)

        def reply() -> GroundedAnswer | None:
            return next((reply for reply in self.replies if is_mine(reply)), None)

        return self.wait_until(reply, timeout, f"no reply to {text[:60]!r} within {timeout:g} s", meanwhile)

    def wait_until(
        self,
        ready: Callable[[], T | None],
        timeout: float,
        complaint: str | Callable[[], str],
        meanwhile: Callable[[], None] | None = None,
    ) -> T:
        """Spin until ``ready()`` gives something else than None or False, and return that.

        Raises:
            NoReplyError: with ``complaint``, after ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while (found := ready()) is None or found is False:
            if time.monotonic() > deadline:
                raise NoReplyError(complaint if isinstance(complaint, str) else complaint())
            if meanwhile is not None:
                meanwhile()
            self._executor.spin_once(timeout_sec=0.1)
        return found

    def spin(self, seconds: float) -> None:
        """Let messages come in for a while."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=left)


def _is_about(reply: GroundedAnswer, text: str) -> bool:
    if reply.status == GroundedAnswer.STATUS_COMMAND_TOO_LONG:
        return text.startswith(reply.command)
    return reply.command == text
