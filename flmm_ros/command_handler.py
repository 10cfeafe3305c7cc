"""Commands of topics and goals become requests to the server; each reply goes back the way its command came."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from rclpy.node import Node
from rclpy.serialization import serialize_message
from rclpy.subscription import MessageInfo
from std_msgs.msg import String

from flmm_core.common.plain_text import one_line, printable
from flmm_core.serving.health import Health
from flmm_core.serving.requests import Limits, Mode, RefusedError, Reply, Request, Status, clean_text
from flmm_core.serving.server import GroundingServer
from flmm_ros import commands, parameters, qos
from flmm_ros.commands import Command, Located
from flmm_ros.conversions.answers import durations_by_stage
from flmm_ros.goals import Goal
from flmm_ros.image_buffer import ImageBuffer
from flmm_ros.msg import GroundedAnswer
from flmm_ros.outputs import Outputs

_GOAL_MODES = (Mode.CHAT, Mode.REFER)


class CommandHandler:
    """Every command gets exactly one reply: on ~/answer, or as the result of its goal.

    Args:
        node: publishes; its parameters limit commands and answers.
        server: processes the commands.
        images: provides their images.
        outputs: publishes what accompanies an answer.
        health: counts answers and refusals.
    """

    def __init__(self, node: Node, *, server: GroundingServer, images: ImageBuffer, outputs: Outputs, health: Health) -> None:
        self._node = node
        self._server = server
        self._images = images
        self._outputs = outputs
        self._health = health
        self._ids = itertools.count(1)
        self._answers = qos.create_publisher(node, GroundedAnswer, "~/answer", qos.commands())
        self._texts = qos.create_publisher(node, String, "~/answer_text", qos.commands())

    # --- executor's thread ------------------------------------------------------------------------------------------------

    def on_message(self, mode: Mode, serialized: bytes, info: MessageInfo) -> None:
        """A command of a topic: a serialized ``std_msgs/String``. Its publisher is the client."""
        publisher = (info.get("publisher_gid") or {}).get("data")
        command = Command(next(self._ids), mode, "", info["source_timestamp"], client=publisher)
        try:
            command = replace(command, text=commands.decode_text(serialized))
        except RefusedError as refusal:
            self._request(command, "").refuse(refusal)
            return
        self._submit(command)

    def on_goal(self, goal: Goal) -> None:
        """A command of the action; the goal names its client."""
        wanted, client = goal.request.mode, goal.request.client or None
        known = wanted in _GOAL_MODES
        now = self._node.get_clock().now().nanoseconds
        mode = Mode(wanted) if known else Mode.CHAT
        command = Command(next(self._ids), mode, goal.request.text, now, client=client, goal=goal)
        if known:
            self._submit(command)
            return
        reason = f"mode: expected one of {', '.join(str(int(mode)) for mode in _GOAL_MODES)}, got {wanted}"
        self._request(command, "").refuse(RefusedError(Status.BAD_COMMAND, reason))

    def _submit(self, command: Command) -> None:
        try:
            words = clean_text(command.text, parameters.value(self._node, "max_command_length"))
        except RefusedError as refusal:
            self._request(command, "").refuse(refusal)
            return
        self._node.get_logger().debug(f"request {command.request_id}: {command.mode.name.lower()} {words!r:.80}")
        self._server.submit(self._request(command, words))

    def _request(self, command: Command, words: str) -> Request:
        goal, image = command.goal, self._images.newest
        if goal is not None and len(goal.request.image.data):
            image = partial(self._images.from_goal, goal.request.image)
        request = Request(
            command.mode,
            (words,),
            image=image,
            reply=partial(self._reply, command),
            limits=partial(self._limits, goal),
            client=command.client,
            callbacks=goal,
        )
        if goal is not None:
            goal.cancel_request = partial(self._server.cancel, request)
        return request

    # --- server's thread --------------------------------------------------------------------------------------------------

    def _limits(self, goal: Goal | None) -> Limits:
        """The limits of a goal; those that it leaves open are parameters of the node."""
        chosen = {}
        for name in ("max_new_tokens", "max_phrases"):
            asked = getattr(goal.request, name) if goal is not None else 0
            chosen[name] = asked or parameters.value(self._node, name)
        return Limits(**chosen)

    # --- any thread -------------------------------------------------------------------------------------------------------

    def _reply(self, command: Command, reply: Reply) -> None:
        """Send the reply and everything that accompanies it; raises only if the reply itself cannot be sent."""
        message, located = commands.node_reply(self._node, command, reply)
        if command.goal is None:
            self._answers.publish(message)
        else:
            serialize_message(message)  # rclpy would drop a result that cannot be serialized, without an error here
            command.goal.finish(message)
        try:  # the reply is sent: a later error must not cause a second one
            self._follow_up(command, reply, message, located)
        except Exception as error:
            self._node.get_logger().error(f"request {command.request_id}: {one_line(error)}")

    def _follow_up(self, command: Command, reply: Reply, message: GroundedAnswer, located: Sequence[Located]) -> None:
        """Text for speech output, images and points, counts and the log."""
        logger, name = self._node.get_logger(), f"request {command.request_id}"
        if command.spoken:
            self._texts.publish(String(data=message.answer or message.reason))
        if reply.answer is not None:
            self._health.answered(durations_by_stage(message.durations))
            self._outputs.publish(message, reply, located)
            unpicked = f" ({message.reason})" if message.reason else ""
            logger.info(f"{name}: {len(message.phrases)} phrases in {message.durations.total:.2f} s{unpicked}")
            return
        self._health.refused(reply.status, reply.reason)
        if reply.status == Status.MODEL_FAILURE:  # rclpy allows one severity for each line of code
            logger.error(f"{name} refused: {printable(reply.reason)}")
        else:
            logger.warning(f"{name} refused: {printable(reply.reason)}")
