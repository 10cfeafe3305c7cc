"""The action ~/ground: goals become requests, and replies become results. Knows no models.

All changes of a goal's state happen in the executor's thread, so that a cancellation and a result never race.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.node import Node

from flmm_core.requests.callbacks import Callbacks, Stage
from flmm_ros.action import Ground
from flmm_ros.msg import GroundedAnswer

MODES = (GroundedAnswer.MODE_CHAT, GroundedAnswer.MODE_REFER)


class Goal(Callbacks):
    """One goal on its way through the node: what its client sees of the command, and whether it wants it still."""

    withdraw: Callable[[], None]
    """To be called when the client does not want it any more; whoever takes the goal sets it."""

    def __init__(self, handle: ServerGoalHandle, node: Node) -> None:
        self._handle = handle
        self._node = node
        self._stage: Stage = "image"

    @property
    def key(self) -> bytes:
        """Its UUID."""
        return bytes(self._handle.goal_id.uuid)

    @property
    def request(self) -> Any:
        """The goal as its client sent it."""
        return self._handle.request

    def on_stage(self, stage: Stage) -> None:
        """Tell the client."""
        self._stage = stage
        self._handle.publish_feedback(Ground.Feedback(stage=stage))

    def on_text(self, text: str) -> None:
        """Tell the client the answer so far."""
        self._handle.publish_feedback(Ground.Feedback(stage=self._stage, text=text))

    def finish(self, reply: GroundedAnswer) -> None:
        """End the goal with its reply; from any thread."""
        if self._node.executor is not None:
            self._node.executor.create_task(self._handle.execute, partial(_end, reply))


def _end(reply: GroundedAnswer, handle: ServerGoalHandle) -> Any:
    if handle.is_cancel_requested:
        handle.canceled()
    elif reply.status == GroundedAnswer.STATUS_ANSWERED:
        handle.succeed()
    else:
        handle.abort()
    return Ground.Result(reply=reply)


class GoalServer:
    """Serves ``~/ground``.

    Args:
        node: that serves it.
        refusal: why no goal can be taken now, or nothing.
        take: receives each goal that was accepted; it is to be finished, and its ``withdraw`` to be set.
    """

    def __init__(self, node: Node, *, refusal: Callable[[], str], take: Callable[[Goal], None]) -> None:
        self._node = node
        self._refusal = refusal
        self._take = take
        self._goals: dict[bytes, Goal] = {}
        self._server = ActionServer(
            node,
            Ground,
            "~/ground",
            execute_callback=lambda handle: Ground.Result(),  # each goal is ended with a callback of its own
            goal_callback=self._on_goal,
            handle_accepted_callback=self._on_accepted,
            cancel_callback=self._on_cancel,
        )

    def destroy(self) -> None:
        """Leave the graph: a node that is destroyed does not take its actions along."""
        self._server.destroy()

    def forget(self, goal: Goal) -> None:
        """A goal that is finished cannot be cancelled."""
        self._goals.pop(goal.key, None)

    def _on_goal(self, goal: Any) -> GoalResponse:
        reason = self._refusal()
        if not reason and goal.mode not in MODES:
            reason = f"mode: expected one of {', '.join(map(str, MODES))}, got {goal.mode}"
        if not reason:
            return GoalResponse.ACCEPT
        self._node.get_logger().warning(f"goal rejected: {reason}")
        return GoalResponse.REJECT

    def _on_accepted(self, handle: ServerGoalHandle) -> None:
        goal = Goal(handle, self._node)
        self._goals[goal.key] = goal
        self._take(goal)

    def _on_cancel(self, handle: ServerGoalHandle) -> CancelResponse:
        goal = self._goals.get(bytes(handle.goal_id.uuid))
        if goal is None:
            return CancelResponse.REJECT
        goal.withdraw()
        return CancelResponse.ACCEPT
