"""The node: commands and images in, grounded answers out.

It translates between topics and a :class:`~flmm_core.serving.server.GroundingServer` and does no maths. It is a lifecycle node:
configure loads the model, activate subscribes, deactivate replies to what is left, cleanup frees the model.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from dataclasses import replace
from functools import partial
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNodeMixin, LifecycleState, TransitionCallbackReturn
from rclpy.qos import QoSProfile
from rclpy.serialization import serialize_message
from rclpy.subscription import MessageInfo, Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header, String

from flmm_core import config as core_config
from flmm_core.common.plain_text import one_line
from flmm_core.config import GroundingConfig
from flmm_core.serving.health import Health
from flmm_core.serving.requests import Limits, Mode, Picture, RefusedError, Reply, Request, Status, clean_text
from flmm_core.serving.server import GroundingServer, Pipeline
from flmm_core.serving.standing import WatchRequest
from flmm_ros import commands, conversions, parameters, qos
from flmm_ros.commands import Command, Located
from flmm_ros.core_log import core_log
from flmm_ros.goals import Goal, GoalServer
from flmm_ros.health import diagnostic_status
from flmm_ros.msg import GroundedAnswer, NodeStatus, Watch
from flmm_ros.outputs import Outputs
from flmm_ros.pictures import ImageMessage, Pictures
from flmm_ros.spinning import RunnableNode

_DIAGNOSTICS = 1.0
"""Seconds between two diagnostics."""
_STOPPING = 1.5
"""Seconds in which the command in work may finish when the node is deactivated."""
_POLL = 0.05
"""Seconds between two looks at the wish to end while a model loads."""

_STATES = {
    NodeStatus.UNCONFIGURED: "unconfigured",
    NodeStatus.LOADING: "loading the model",
    NodeStatus.INACTIVE: "inactive",
    NodeStatus.READY: "ready",
    NodeStatus.FAILED: "failed",
}


def load_pipeline(config: GroundingConfig) -> Pipeline:
    """The real pipeline; imports transformers, which takes seconds, and keeps its bars and advice out of the node's log."""
    from transformers.utils import logging

    from flmm_core.pipeline import GroundingPipeline

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return GroundingPipeline.from_config(config)


class GroundingNode(LifecycleNodeMixin, RunnableNode):
    """Answers commands about the newest image.

    Args:
        load: builds the pipeline; called in the server's thread.
    """

    def __init__(self, *, load: Callable[[GroundingConfig], Pipeline] = load_pipeline) -> None:
        RunnableNode.__init__(self, "grounding")
        LifecycleNodeMixin.__init__(self)
        self.ending = threading.Event()
        self._state = NodeStatus.UNCONFIGURED
        parameters.declare_grounding(self, locked=self._locked)
        self._ids = itertools.count(1)
        self._health = Health()
        self._pictures = Pictures(self, lambda: qos.full_name(self, self._image_topic))
        self._inputs: dict[str, Subscription[Any]] = {}
        """While active, by topic before remapping."""
        self._watched: tuple[str, ...] = ()
        self._server = GroundingServer(lambda: self._pipeline(load), lost=self._on_lost)
        self._answers = qos.create_publisher(self, GroundedAnswer, "~/answer", qos.commands())
        self._texts = qos.create_publisher(self, String, "~/answer_text", qos.commands())
        self._watch_results = qos.create_publisher(self, GroundedAnswer, "~/watched", qos.images())
        self._outputs = Outputs(self)
        self._statuses = self.create_publisher(NodeStatus, "~/status", qos.latched())
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", qos.diagnostics())
        self._goals = GoalServer(self, refusal=self._no_goal, take=self._on_goal)
        self._enter(NodeStatus.UNCONFIGURED)
        # In a thread: the executor is busy while a model loads, and a stuck one is when diagnostics are needed most.
        self._beating = threading.Event()
        self._beat = threading.Thread(target=self._publish_diagnostics, name="diagnostics", daemon=True)
        self._beat.start()
        if parameters.value(self, "autostart"):
            # By a clock that goes on when simulated time stands still.
            self._starter = self.create_timer(0.0, self._autostart, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _pipeline(self, load: Callable[[GroundingConfig], Pipeline]) -> Pipeline:
        """A model of its own, or the fleet at the address that is asked for."""
        if address := parameters.value(self, "server"):
            from flmm_core.serving.remote import RemotePipeline

            remote = RemotePipeline(address)
            remote.describe()  # that there is no fleet is said at once
            return remote
        return load(parameters.grounding_config(self))

    @property
    def _compressed(self) -> bool:
        return bool(parameters.value(self, "image_transport") == "compressed")

    @property
    def _image_topic(self) -> str:
        return "image/compressed" if self._compressed else "image"

    @property
    def _image_type(self) -> type[ImageMessage]:
        return CompressedImage if self._compressed else Image

    def _locked(self) -> str:
        return "" if self._state == NodeStatus.UNCONFIGURED else "can be changed only while the node is unconfigured"

    def close(self, timeout: float) -> None:
        """Refuse what waits, and let the command in work finish; refuse it too if it takes longer than ``timeout``."""
        self._server.stop(timeout, "the node is shutting down")
        self._beating.set()
        self._beat.join(_DIAGNOSTICS)

    def leave(self) -> None:
        """Leave the graph, with the action and the state machine, which rclpy does not destroy along.

        Either would keep the node's participant alive, and the middleware's shared memory would outlast the process.
        """
        self._goals.destroy()
        super().leave()
        self._state_machine.destroy_when_not_in_use()

    # --- lifecycle --------------------------------------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model and try it out."""
        return self._transition("configure", NodeStatus.UNCONFIGURED, self._configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe, and take commands."""
        return self._transition("activate", NodeStatus.INACTIVE, self._activate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Reply to every command that has come, and take no more."""
        return self._transition("deactivate", NodeStatus.READY, self._deactivate)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model and all that is kept of images."""
        return self._transition("clean up", NodeStatus.INACTIVE, self._clean_up)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Reply to every command, and free the model."""
        return self._transition("shut down", self._state, self._shut_down)

    def _transition(self, name: str, before: int, act: Callable[[], None]) -> TransitionCallbackReturn:
        """Change the state; if that fails, the node is as before and says why, in one line."""
        try:
            act()
        except Exception as error:
            reason = f"cannot {name}: {one_line(error)}"
            if not self.ending.is_set():
                self.get_logger().error(reason)
            self._enter(before, reason)
            return TransitionCallbackReturn.FAILURE
        return TransitionCallbackReturn.SUCCESS

    def _configure(self) -> None:
        began = time.monotonic()
        self.get_logger().info("loading the model ...")
        self._enter(NodeStatus.LOADING)
        with core_log(self.get_logger(), partial(self._enter, NodeStatus.LOADING)):
            loaded = self._server.load()
            while not wait([loaded], _POLL).done:
                if self.ending.is_set():
                    raise RuntimeError("the node is shutting down")
        try:
            self._health.loaded(loaded.result())
        except Exception:
            self._server.unload(0.0)
            raise
        self._enter(NodeStatus.INACTIVE)
        self.get_logger().info(f"ready: the model was loaded in {time.monotonic() - began:.1f} s")

    def _activate(self) -> None:
        self._server.start(parameters.value(self, "queue_size"))
        try:
            self._subscribe()
        except Exception:
            self._deactivate()
            raise
        for name in qos.unused_overrides(self):
            self.get_logger().warning(f"ignored, {name}: this node has no such topic, or cannot change that of it")
        self._enter(NodeStatus.READY)

    def _deactivate(self) -> None:
        for topic, callback in self._command_callbacks().items():
            if (subscription := self._inputs.get(topic)) is not None:
                _take_what_waits(subscription, callback)
        for subscription in self._inputs.values():
            self.destroy_subscription(subscription)
        self._inputs.clear()
        self._server.stop(_STOPPING, "the node was deactivated")
        self._pictures.clear()
        self._watched = ()
        self._enter(NodeStatus.INACTIVE)

    def _clean_up(self) -> None:
        if not self._server.unload(_STOPPING):
            raise RuntimeError("a command is still in work")
        self._health.loaded({})
        self._enter(NodeStatus.UNCONFIGURED)

    def _shut_down(self) -> None:
        if self._state == NodeStatus.READY:
            self._deactivate()
        if self._state == NodeStatus.INACTIVE:
            self._clean_up()

    def _autostart(self) -> None:
        self.destroy_timer(self._starter)
        steps = (self.trigger_configure, self.trigger_activate)
        if not all(step() == TransitionCallbackReturn.SUCCESS for step in steps) and not self.ending.is_set():
            self.failure = self._message

    def _enter(self, state: int, message: str = "") -> None:
        self._state, self._message = state, message
        self._health.enter(_STATES[state], message)
        try:
            now = self.get_clock().now().to_msg()
            self._statuses.publish(NodeStatus(stamp=now, state=state, message=message, watched=self._watched))
        except Exception as error:
            self.get_logger().error(f"no status: {one_line(error)}")

    def _on_lost(self, reason: str) -> None:
        self._enter(NodeStatus.FAILED, reason)
        self.failure = reason

    # --- executor's thread ------------------------------------------------------------------------------------------------

    def _subscribe(self) -> None:
        callbacks: dict[str, tuple[type, Callable[..., None], QoSProfile]] = {
            self._image_topic: (self._image_type, self._on_image, qos.camera()),
            "depth": (Image, partial(self._on_space, self._pictures.space.put_depth), qos.camera()),
            "camera_info": (CameraInfo, partial(self._on_space, self._pictures.space.put_info), qos.camera()),
        }
        kinds = {"command": String, "phrase": String, "~/watch": Watch}
        for topic, callback in self._command_callbacks().items():
            callbacks[topic] = (kinds[topic], callback, qos.commands())
        for topic, (kind, callback, profile) in callbacks.items():
            self._inputs[topic] = qos.create_subscription(self, kind, topic, callback, profile)

    def _command_callbacks(self) -> dict[str, Callable[[bytes, MessageInfo], None]]:
        """By topic before remapping: those whose every message gets a reply."""
        return {
            "command": partial(self._on_command, Mode.CHAT),
            "phrase": partial(self._on_command, Mode.REFER),
            "~/watch": self._on_watch,
        }

    def _on_image(self, serialized: bytes, _: MessageInfo) -> None:
        try:
            self._pictures.put(serialized)
            self._health.image()
        except Exception as error:
            self._health.unreadable()
            self.get_logger().error(f"image dropped: {one_line(error)}", throttle_duration_sec=1.0)

    def _on_space(self, put: Callable[[bytes], None], serialized: bytes, _: MessageInfo) -> None:
        try:
            put(serialized)
        except Exception as error:
            self.get_logger().error(f"depth or camera info dropped: {one_line(error)}", throttle_duration_sec=1.0)

    def _on_command(self, mode: Mode, serialized: bytes, info: MessageInfo) -> None:
        sender = (info.get("publisher_gid") or {}).get("data")
        command = Command(next(self._ids), mode, "", info["source_timestamp"], client=sender)
        try:
            command = replace(command, text=commands.decode_text(serialized))
        except RefusedError as refusal:
            self._request(command, "").refuse(refusal)
            return
        self._offer(command)

    def _on_goal(self, goal: Goal) -> None:
        now = self.get_clock().now().nanoseconds
        self._offer(Command(next(self._ids), Mode(goal.request.mode), goal.request.text, now, goal=goal))

    def _no_goal(self) -> str:
        refusal = self._server.refusal()
        return refusal.reason if refusal is not None else ""

    def _offer(self, command: Command) -> None:
        try:
            words = clean_text(command.text, parameters.value(self, "max_command_length"))
        except RefusedError as refusal:
            self._request(command, "").refuse(refusal)
            return
        self.get_logger().debug(f"request {command.request_id}: {command.mode.name.lower()} {words!r:.80}")
        self._server.submit(self._request(command, words))

    def _request(self, command: Command, words: str) -> Request:
        goal, picture = command.goal, self._newest
        if goal is not None and len(goal.request.image.data):
            picture = partial(self._pictures.given, goal.request.image)
        request = Request(
            command.mode,
            (words,),
            picture=picture,
            reply=partial(self._reply, command),
            limits=partial(self._limits, goal),
            client=command.client,
            callbacks=goal,
        )
        if goal is not None:
            goal.withdraw = partial(self._server.cancel, request)
        return request

    def _on_watch(self, serialized: bytes, _: MessageInfo) -> None:
        try:
            longest, most = (parameters.value(self, name) for name in ("max_command_length", "max_phrases"))
            phrases = tuple(clean_text(text, longest) for text in commands.decode_phrases(serialized, most))
        except RefusedError as refusal:
            self._on_watched(Command(0, Mode.WATCH, ""), Reply(refusal.status, refusal.reason, began=time.monotonic()))
            return
        except Exception as error:
            self.get_logger().error(f"list to watch dropped: {one_line(error)}")
            return
        standing = WatchRequest(
            phrases,
            picture=self._newest,
            result=partial(self._on_watched, Command(0, Mode.WATCH, commands.joined(phrases))),
            period=lambda: 1.0 / parameters.value(self, "watch_rate", float),
            refresh=lambda: parameters.value(self, "watch_refresh", float),
        )
        self._server.watch(standing if phrases else None)
        self._watched = phrases
        self._enter(self._state)
        self.get_logger().info(f"watching: {', '.join(phrases) or 'nothing'}")

    # --- server's thread --------------------------------------------------------------------------------------------------

    def _newest(self) -> Picture:
        return self._pictures.newest(self._image_type)

    def _limits(self, goal: Goal | None) -> Limits:
        """What a goal asks for, or else the parameters."""
        chosen = {}
        for name in ("max_new_tokens", "max_phrases"):
            asked = getattr(goal.request, name) if goal is not None else 0
            try:
                core_config.check(name, asked or 1)
            except ValueError as error:
                raise RefusedError(Status.BAD_COMMAND, one_line(error)) from error
            chosen[name] = asked or parameters.value(self, name)
        return Limits(**chosen)

    def _on_watched(self, command: Command, reply: Reply) -> None:
        try:
            message, located = self._reply_message(command, reply)
            self._watch_results.publish(message)
        except Exception as error:
            self.get_logger().error(f"nothing on ~/watched: {one_line(error)}", throttle_duration_sec=1.0)
            return
        if reply.answer is None:
            self.get_logger().warning(f"watching: {reply.reason}")
            return
        self._health.watched(reply.tracked)
        self._outputs.publish(message, reply, located)

    # --- any thread -------------------------------------------------------------------------------------------------------

    def _reply(self, command: Command, reply: Reply) -> None:
        """Send the one reply to a command, and what goes with it; raises if the reply itself cannot be sent."""
        message, located = self._reply_message(command, reply)
        if command.goal is None:
            self._answers.publish(message)
        else:
            serialize_message(message)  # a result that cannot be sent would be lost without a word
            command.goal.finish(message)
            self._goals.forget(command.goal)
        try:  # the reply is out: what goes wrong from here on is no second reply
            self._follow_up(command, reply, message, located)
        except Exception as error:
            self.get_logger().error(f"request {command.request_id}: {one_line(error)}")

    def _reply_message(self, command: Command, reply: Reply) -> tuple[GroundedAnswer, list[Located]]:
        longest = parameters.value(self, "max_command_length")
        return commands.reply_message(command, reply, self.get_clock().now(), max_text=longest)

    def _follow_up(self, command: Command, reply: Reply, message: GroundedAnswer, located: Sequence[Located]) -> None:
        """Words for who listens only: a question is never met with silence. Images, points, the log."""
        if command.spoken:
            self._texts.publish(String(data=message.answer or message.reason))
        name = f"request {command.request_id}"
        if reply.answer is not None:
            self._health.answered(conversions.durations_by_stage(message.durations))
            self._outputs.publish(message, reply, located)
            self.get_logger().info(f"{name}: {len(message.phrases)} phrases in {message.durations.total:.2f} s")
            return
        self._health.refused(reply.status, reply.reason)
        if reply.status == Status.MODEL_FAILURE:  # rclpy allows one severity for each line of code
            self.get_logger().error(f"{name} refused: {reply.reason}")
        else:
            self.get_logger().warning(f"{name} refused: {reply.reason}")

    def _publish_diagnostics(self) -> None:
        while not self._beating.wait(_DIAGNOSTICS):
            try:
                report = self._health.report(
                    waiting=self._server.waiting,
                    capacity=parameters.value(self, "queue_size"),
                    skipped=self._pictures.skipped,
                    oldest_image=parameters.value(self, "max_image_age", float),
                    slow_answer=parameters.value(self, "slow_answer", float),
                    device_memory=self._server.device_memory(),
                )
                status = diagnostic_status(self.get_fully_qualified_name(), report)
                header = Header(stamp=self.get_clock().now().to_msg())
                self._diagnostics.publish(DiagnosticArray(header=header, status=[status]))
            except Exception as error:
                self.get_logger().error(f"no diagnostics: {one_line(error)}")


def _take_what_waits(subscription: Subscription[Any], callback: Callable[[bytes, MessageInfo], None]) -> None:
    """Hand over the messages that the middleware holds: they would be gone with their subscription."""
    while True:
        with subscription.handle:
            taken = subscription.handle.take_message(subscription.msg_type, True)
        if taken is None:
            return
        callback(*taken)
