"""A client of the grounding node: sends commands as goals of the action ~/ground and waits for their replies."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

import rclpy
from action_msgs.msg import GoalStatus
from rcl_interfaces.srv import ListParameters
from rclpy.action import ActionClient
from rclpy.client import Client
from rclpy.exceptions import InvalidTopicNameException
from rclpy.executors import SingleThreadedExecutor
from rclpy.task import Future
from rclpy.validate_full_topic_name import validate_full_topic_name
from sensor_msgs.msg import Image

from flmm_ros import qos
from flmm_ros.action import Ground
from flmm_ros.msg import GroundedAnswer, NodeStatus
from flmm_ros.pulse import PING, NoReplyError, Pulse

T = TypeVar("T")

_CANCELLING = 0.5
"""Seconds for a cancellation to reach the node."""
_STATES = {
    NodeStatus.UNCONFIGURED: "is not configured",
    NodeStatus.LOADING: "is still loading its model",
    NodeStatus.INACTIVE: "is not active",
    NodeStatus.READY: "does not answer",
    NodeStatus.FAILED: "has failed",
    NodeStatus.FINALIZED: "was shut down",
    NodeStatus.UNRESPONSIVE: "does not answer",
}


class AskClient:
    """Talks to a grounding node. Use it in a ``with`` statement, from one thread.

    Args:
        node: full name of the grounding node.

    Raises:
        ValueError: ``node`` is no such name.
    """

    def __init__(self, node: str = "/grounding") -> None:
        check_node_name(node)
        self.node_name = node
        self._context = rclpy.Context()
        rclpy.init(context=self._context, args=[])
        self.node = rclpy.create_node(f"flmm_ask_{uuid.uuid4().hex}", context=self._context, enable_rosout=False)
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._goals: Any = ActionClient(self.node, Ground, f"{node}/ground", **qos.action_services())
        self.status: NodeStatus | None = None
        """The last status of the node; None before the first one."""
        self.node.create_subscription(NodeStatus, f"{node}/status", self._on_status, qos.latched())
        self._pings: Client = self.node.create_client(ListParameters, f"{node}/list_parameters")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Leave the graph."""
        self._executor.shutdown(timeout_sec=1.0)
        self._goals.destroy()
        self.node.destroy_node()
        rclpy.try_shutdown(context=self._context)

    def _on_status(self, status: NodeStatus) -> None:
        self.status = status

    def collect_overlays(self) -> list[Image]:
        """Make the node draw overlays for this client; they are appended to the returned list."""
        overlays: list[Image] = []
        self.node.create_subscription(Image, f"{self.node_name}/overlay", overlays.append, qos.images())
        return overlays

    def wait_for_node(self, timeout: float, meanwhile: Callable[[], None] | None = None) -> None:
        """Wait until the node is ready and messages travel both ways.

        A client may have discovered the node before the node has discovered the client; a reply would then be lost without an
        error. This method therefore calls a service of the node with a service client that it creates after everything else:
        the middleware announces endpoints in order, so a node that answers it knows every publisher and subscription here.

        Args:
            timeout: seconds.
            meanwhile: called repeatedly; may raise to give up early.

        Raises:
            NoReplyError: the node is not there, or not ready; the message says which.
        """

        def ready() -> bool:
            if self.node.count_publishers(f"{self.node_name}/status") == 0:
                self.status = None  # of a node that has left
            return self.status is not None and self.status.state == NodeStatus.READY and self._goals.server_is_ready()

        def absent() -> str:
            if self.status is not None:
                said = f" ({self.status.message})" if self.status.message else ""
                return f"{self.node_name} {_STATES[self.status.state]}{said}: waited {timeout:g} s"
            hint = "is it running, with the same ROS_DOMAIN_ID? (`make run` starts it)"
            return f"no node {self.node_name} within {timeout:g} s: {hint}"

        self.wait_until(ready, timeout, absent, meanwhile)
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
            if time.monotonic() > asked + PING and ping.service_is_ready():
                answers.append(ping.call_async(ListParameters.Request()))
                asked = time.monotonic()
            return any(answer.done() for answer in answers)

        def silent() -> str:
            found = f"asked {len(answers)} times" if answers else "the service was not found"
            return f"{self.node_name} is there but does not answer {ping.srv_name} within {timeout:g} s ({found})"

        self.wait_until(answered, timeout, silent, meanwhile)

    def wait_for_image(self, timeout: float, meanwhile: Callable[[], None] | None = None) -> GroundedAnswer:
        """Wait until the node has an image: a node that is ready may not have discovered its camera yet.

        Args:
            timeout: seconds, also for each reply.
            meanwhile: called repeatedly; may raise to give up early.

        Returns:
            The first reply with a status other than STATUS_NO_IMAGE; it may be another refusal.

        Raises:
            NoReplyError: no image or no reply in time; the message says which.
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

        If this method raises, for instance at Ctrl-C, the command is cancelled. A node that is lost meanwhile, for instance
        killed, is noticed within seconds: it answers pings also while its model works.

        Args:
            text: the command or phrase.
            refer: whether to ground ``text`` as it is.
            timeout: seconds.
            meanwhile: called repeatedly; may raise to give up early.

        Raises:
            NoReplyError: no reply within ``timeout`` seconds, or the node is lost or does not know the command any more.
        """
        deadline = time.monotonic() + timeout
        complaint = f"no reply to {text[:60]!r} within {timeout:g} s"
        pulse = Pulse(self.node, self._pings, self.node_name)

        def check() -> None:
            pulse.check()
            if meanwhile is not None:
                meanwhile()

        def wait_for(future: Future) -> Any:
            self.wait_until(future.done, deadline - time.monotonic(), complaint, check)
            return future.result()

        mode = Ground.Goal.MODE_REFER if refer else Ground.Goal.MODE_CHAT
        name = self.node.get_fully_qualified_name()
        sent: Future = self._goals.send_goal_async(Ground.Goal(client=name, mode=mode, text=text))
        try:
            result = wait_for(wait_for(sent).get_result_async())
        except BaseException:
            self._cancel(sent)
            raise
        if result.status == GoalStatus.STATUS_UNKNOWN:
            raise NoReplyError(f"{self.node_name} does not know the command {text[:60]!r} any more: was it restarted?")
        reply: GroundedAnswer = result.result.reply
        return reply

    def _cancel(self, sent: Future) -> None:
        """Cancel a goal, once the node has accepted it; gives up after a moment."""
        deadline = time.monotonic() + _CANCELLING

        def done(future: Future) -> bool:
            while not future.done() and time.monotonic() < deadline:
                self._executor.spin_once(timeout_sec=_CANCELLING)
            return future.done()

        if done(sent):
            handle: Any = sent.result()
            done(handle.cancel_goal_async())

    def wait_until(
        self,
        ready: Callable[[], T | None],
        timeout: float,
        complaint: str | Callable[[], str],
        meanwhile: Callable[[], None] | None = None,
    ) -> T:
        """Spin until ``ready()`` returns something other than None or False, and return that.

        Args:
            ready: called repeatedly.
            timeout: seconds.
            complaint: message of the error, or a function that returns it.
            meanwhile: called repeatedly; may raise to give up early.

        Raises:
            NoReplyError: after ``timeout`` seconds.
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
        """Process incoming messages for a number of seconds."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._executor.spin_once(timeout_sec=left)


def check_node_name(name: str) -> None:
    """Refuse what is no full name of a node.

    Raises:
        ValueError: says what was expected.
    """
    try:
        validate_full_topic_name(name)
    except InvalidTopicNameException as error:
        raise ValueError(f"node: expected a full name such as /grounding, got {name!r}") from error
