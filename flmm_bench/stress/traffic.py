"""Random traffic: commands, phrases, goals, cancellations, watch lists, malformed messages. Keeps the delivery log."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from rclpy.action import ActionClient
from rclpy.task import Future
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Float32MultiArray, String

from flmm_bench.stress.delivery_log import DeliveryLog, Entry
from flmm_bench.stress.fuzz import fuzzed
from flmm_bench.stress.node import LATENESS
from flmm_ros import qos
from flmm_ros.action import Ground
from flmm_ros.client import AskClient
from flmm_ros.msg import GroundedAnswer, Watch

QUESTIONS = (
    "what is on the table?",
    "where is the lemon?",
    "is there a unicorn?",
    "bring me the mug",
    "how many things are there?",
    "what colour is the ball?",
    "hello",
)
PHRASES = ("the mug", "the ball", "the red cone", "the unicorn", "the banana")
_MAX_PENDING = 12
"""While more commands than these wait for a reply, nothing is sent."""
_PAUSE = 0.25
"""Mean seconds between two actions."""
_ROUNDING = 1000
"""Nanoseconds by which a stamp may differ from the clock that it was read from."""


class Traffic:
    """Several kinds of client in one node.

    Args:
        client: connected to the node.
        seed: of the choices.
    """

    def __init__(self, client: AskClient, seed: int) -> None:
        self.client, self.log = client, DeliveryLog()
        self.chance = random.Random(seed)
        self.lateness: list[float] = []
        """Of the node's timer, ms, see :mod:`flmm_bench.stress.node`."""
        self.malformed = 0
        """Malformed messages that were sent."""
        node = client.node
        self._commands = node.create_publisher(String, "/command", qos.commands())
        self._phrases = node.create_publisher(String, "/phrase", qos.commands())
        self._lists = node.create_publisher(Watch, "/grounding/watch", qos.commands())
        reliable = qos.commands()
        self._inputs = {
            kind_and_topic: node.create_publisher(*kind_and_topic, reliable)
            for kind_and_topic in ((Image, "/image"), (Image, "/depth"), (CameraInfo, "/camera_info"))
        }
        node.create_subscription(GroundedAnswer, "/grounding/answer", self.log.add_reply, qos.commands())
        node.create_subscription(GroundedAnswer, "/grounding/watched", self._on_watched, qos.images())
        node.create_subscription(Float32MultiArray, f"/{LATENESS}", self._on_lateness, qos.commands())
        self._goals: Any = ActionClient(node, Ground, "/grounding/ground")

    def forget_node(self) -> None:
        """Forget what the node before has said: the status of one that was killed stays READY for a while."""
        self.client.status = None

    def connect(self, timeout: float) -> None:
        """Wait until the node is reachable by topic and by action, for at most ``timeout`` seconds.

        Raises:
            NoReplyError: it is not.
        """
        self.client.wait_for_node(timeout)
        self.client.wait_until(self._goals.server_is_ready, timeout, f"no action server within {timeout:g} s")
        publishers = (self._commands, self._phrases, self._lists)
        read = lambda: min(publisher.get_subscription_count() for publisher in publishers) > 0  # noqa: E731
        self.client.wait_until(read, timeout, f"the node does not read commands within {timeout:g} s")

    def act(self) -> None:
        """Choose one action at random, then receive messages for a moment."""
        actions: tuple[tuple[float, Callable[[], None]], ...] = (
            (40, partial(self._command, self._commands, QUESTIONS)),
            (12, partial(self._command, self._phrases, PHRASES)),
            (16, self._goal),
            (6, self._watch),
            (4, self._malformed_command),
            (18, self._malformed_input),
            (4, self.burst),
        )
        (action,) = self.chance.choices([action for _, action in actions], [weight for weight, _ in actions])
        if self.log.recent_pending() < _MAX_PENDING:
            action()
        self.client.spin(min(2.0, self.chance.expovariate(1 / _PAUSE)))

    def burst(self) -> None:
        """Send 3 to 15 commands at once: often more than the queue holds."""
        for _ in range(self.chance.randint(3, 15)):
            self._command(self._commands, QUESTIONS)

    def drain(self, timeout: float) -> None:
        """Wait until every command has its reply, for at most ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        while self.log.recent_pending() and time.monotonic() < deadline:
            self.client.spin(0.1)

    def _command(self, publisher: Any, texts: tuple[str, ...]) -> None:
        self._publish(publisher, String(data=self.chance.choice(texts)))

    def _malformed_command(self) -> None:
        self._publish(self.chance.choice((self._commands, self._phrases)), fuzzed(String, self.chance))
        self.malformed += 1

    def _publish(self, publisher: Any, message: String | bytes) -> None:
        before = time.time_ns() - _ROUNDING
        publisher.publish(message)
        self.log.commands.append(Entry((before, time.time_ns() + _ROUNDING)))
        time.sleep(1e-5)  # the intervals of two commands must not overlap

    def _malformed_input(self) -> None:
        (kind, _), publisher = self.chance.choice(list(self._inputs.items()))
        publisher.publish(fuzzed(kind, self.chance))
        if self.chance.random() < 0.3:
            self._lists.publish(fuzzed(Watch, self.chance))
        self.malformed += 1

    def _watch(self) -> None:
        count = self.chance.choice((0, 1, 2, 4))
        self._lists.publish(Watch(phrases=self.chance.sample(PHRASES, count)))

    def _goal(self) -> None:
        refer = self.chance.random() < 0.3
        goal = Ground.Goal(mode=int(refer), text=self.chance.choice(PHRASES if refer else QUESTIONS))
        if self.chance.random() < 0.1:
            goal.image = Image(encoding="rgb9", data=[0])
        entry = Entry()
        self.log.goals.append(entry)
        cancel_after = self.chance.uniform(0.0, 0.6) if self.chance.random() < 0.4 else None
        self._goals.send_goal_async(goal).add_done_callback(partial(self._on_goal_response, entry, cancel_after))

    def _on_goal_response(self, entry: Entry, cancel_after: float | None, sent: Future) -> None:
        handle: Any = sent.result()
        if not handle.accepted:
            return  # the node accepts every goal: the entry is lost
        handle.get_result_async().add_done_callback(lambda done: self.log.add_result(entry, done.result().result.reply))
        if cancel_after is not None:
            self.log.cancelled += 1

            def cancel() -> None:
                timer.cancel()
                self.client.node.destroy_timer(timer)
                handle.cancel_goal_async()

            timer = self.client.node.create_timer(cancel_after, cancel)

    def _on_watched(self, message: GroundedAnswer) -> None:
        self.log.watched += message.status == GroundedAnswer.STATUS_ANSWERED
        self.log.tracked += message.tracked

    def _on_lateness(self, message: Float32MultiArray) -> None:
        self.lateness += message.data
