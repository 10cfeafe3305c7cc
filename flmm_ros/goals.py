"""The action ~/ground: goals become commands, and replies become results. Independent of models.

All changes of a goal's state happen in the executor's thread, so that cancellation and result cannot race.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from rclpy.action import ActionServer, CancelResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from flmm_core.requests.callbacks import Callbacks, Stage
from flmm_core.serving.requests import RefusedError, Status
from flmm_ros import qos
from flmm_ros.action import Ground
from flmm_ros.msg import GroundedAnswer

_CHECK = 1.0
"""Seconds between two checks whether the clients of goals are still there."""


class Goal(Callbacks):
    """One accepted goal: publishes its feedback, and ends it with its reply.

    Args:
        handle: rclpy's handle of the goal.
        node: its executor ends the goal.
        finished: called when the goal has its reply.
    """

    cancel_request: Callable[[RefusedError | None], None]
    """Cancels the request of this goal, with its own refusal or that of a cancellation; set by the receiver of the goal."""
    client_seen = False
    """A node of the client's name was in the graph."""

    def __init__(self, handle: ServerGoalHandle, node: Node, *, finished: Callable[[Goal], None]) -> None:
        self._handle = handle
        self._node = node
        self._finished = finished
        self._stage: Stage = "image"

    @property
    def key(self) -> bytes:
        """The UUID of the goal."""
        return bytes(self._handle.goal_id.uuid)

    @property
    def request(self) -> Any:
        """The ``Ground.Goal`` message of the client."""
        return self._handle.request

    def on_stage(self, stage: Stage) -> None:
        """Publish the stage as feedback."""
        self._stage = stage
        self._handle.publish_feedback(Ground.Feedback(stage=stage))

    def on_text(self, text: str) -> None:
        """Publish the answer so far as feedback."""
        self._handle.publish_feedback(Ground.Feedback(stage=self._stage, text=text))

    def finish(self, reply: GroundedAnswer) -> None:
        """End the goal with its reply; it cannot be cancelled any more. Thread-safe."""
        if self._node.executor is not None:
            self._node.executor.create_task(self._handle.execute, partial(_end, reply))
        self._finished(self)


def _end(reply: GroundedAnswer, handle: ServerGoalHandle) -> Any:
    if handle.is_cancel_requested:
        handle.canceled()
    elif reply.status == GroundedAnswer.STATUS_ANSWERED:
        handle.succeed()
    else:
        handle.abort()
    return Ground.Result(reply=reply)


class GoalServer:
    """Serves ``~/ground``. Every goal is accepted, so that its client gets a reply; a refusal aborts it.

    Args:
        node: serves the action.
        on_goal: receives each goal; must set its ``cancel_request``, and cause its ``finish`` to be called once.
    """

    def __init__(self, node: Node, *, on_goal: Callable[[Goal], None]) -> None:
        self._node = node
        self._on_goal = on_goal
        self._goals: dict[bytes, Goal] = {}
        """Goals without a reply, by their UUIDs."""
        self._server = ActionServer(
            node,
            Ground,
            "~/ground",
            execute_callback=lambda handle: Ground.Result(),  # each goal is ended with a callback of its own
            handle_accepted_callback=self._on_accepted,
            cancel_callback=self._on_cancel,
            **qos.action_services(),
        )
        # A steady clock, because simulated time may stand still.
        node.create_timer(_CHECK, self._check_clients, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def destroy(self) -> None:
        """Remove the action from the graph; rclpy does not do so when it destroys the node."""
        self._server.destroy()

    def _on_accepted(self, handle: ServerGoalHandle) -> None:
        goal = Goal(handle, self._node, finished=self._forget)
        self._goals[goal.key] = goal
        self._on_goal(goal)

    def _forget(self, goal: Goal) -> None:
        self._goals.pop(goal.key, None)

    def _on_cancel(self, handle: ServerGoalHandle) -> CancelResponse:
        goal = self._goals.get(bytes(handle.goal_id.uuid))
        if goal is None:
            return CancelResponse.REJECT
        goal.cancel_request(None)
        return CancelResponse.ACCEPT

    def _check_clients(self) -> None:
        """Cancel the goals of clients that have left: rclpy does not report whose a goal is, but a goal may name its node."""
        goals = list(self._goals.values())  # goals end in other threads
        if not any(goal.request.client for goal in goals):
            return
        present = set(self._node.get_fully_qualified_node_names())
        for goal in goals:
            here = goal.request.client in present
            goal.client_seen |= here
            if goal.client_seen and not here:
                goal.cancel_request(RefusedError(Status.CANCELLED, f"its client {goal.request.client} has left"))
