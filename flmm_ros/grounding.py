"""The grounding node: commands and images in, grounded answers out.

This file holds the life cycle: configure loads the model, activate subscribes, deactivate replies to what is left, cleanup
frees the model. Transitions run in threads of their own (:class:`~flmm_ros.spinning.NodeExecutor`), so that services answer
meanwhile. Commands, watch lists, status and diagnostics are objects of their own; a
:class:`~flmm_core.serving.server.GroundingServer` runs the model.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from functools import partial
from typing import Any

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.lifecycle import LifecycleNodeMixin, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from rclpy.subscription import MessageInfo, Subscription
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import String

from flmm_core.common.plain_text import one_line
from flmm_core.config import GroundingConfig
from flmm_core.serving.health import Health
from flmm_core.serving.interface import Pipeline
from flmm_core.serving.requests import Mode
from flmm_core.serving.server import GroundingServer
from flmm_ros import parameters, qos
from flmm_ros.command_handler import CommandHandler
from flmm_ros.core_log import core_log
from flmm_ros.diagnostics import DiagnosticsPublisher
from flmm_ros.goals import GoalServer
from flmm_ros.image_buffer import ImageBuffer
from flmm_ros.msg import NodeStatus, Watch
from flmm_ros.outputs import Outputs
from flmm_ros.spinning import RunnableNode
from flmm_ros.status import Status
from flmm_ros.watch_handler import WatchHandler

_STOPPING = 1.5
"""Seconds in which the command in progress may finish when the node is deactivated."""
_POLL = 0.05
"""Seconds between two checks for a signal while a model loads."""


def load_pipeline(config: GroundingConfig) -> Pipeline:
    """Build the pipeline of a configuration.

    Imports transformers, which takes seconds, and keeps its progress bars and advice out of the node's log.
    """
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
        LifecycleNodeMixin.__init__(self, callback_group=ReentrantCallbackGroup())
        self.ending = threading.Event()
        parameters.declare_grounding(self, locked=self._locked)
        self._health = Health()
        self._images = ImageBuffer(self)
        self._inputs: dict[str, Subscription[Any]] = {}
        """Subscriptions of the active node, by topic before remapping."""
        self._receiving = threading.Lock()
        """Held while an image is stored, so that none is stored after the node was deactivated."""
        self._server = GroundingServer(
            lambda: self._pipeline(load), lost=self._on_lost, hangs=lambda reason: self._status.hangs(reason)
        )
        server, images, health, outputs = self._server, self._images, self._health, Outputs(self)
        self._commands = CommandHandler(self, server=server, images=images, outputs=outputs, health=health)
        self._watch = WatchHandler(
            self,
            server=server,
            images=images,
            outputs=outputs,
            health=health,
            changed=lambda: self._status.publish(),
        )
        self._status = Status(self, health=health, watched=lambda: server.watched)
        self._goals = GoalServer(self, on_goal=self._commands.on_goal)
        self.add_post_set_parameters_callback(self._on_parameters)
        self._diagnostics = DiagnosticsPublisher(self, health=health, server=server, images=images)
        if parameters.value(self, "autostart"):
            # A steady clock, because simulated time may stand still.
            self._starter = self.create_timer(0.0, self._on_start, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _pipeline(self, load: Callable[[GroundingConfig], Pipeline]) -> Pipeline:
        """The model of this node, or a client of the fleet that the parameter ``server`` names."""
        if address := parameters.value(self, "server"):
            from flmm_core.serving.remote import RemotePipeline

            remote = RemotePipeline(address)
            remote.describe()  # fails now if no fleet answers there
            return remote
        return load(parameters.grounding_config(self))

    def _locked(self) -> str:
        return "" if self._status.state == NodeStatus.UNCONFIGURED else "can be changed only while the node is unconfigured"

    def _on_parameters(self, changed: Sequence[Parameter[Any]]) -> None:
        thresholds = {one.name: one.value for one in changed if one.name in parameters.THRESHOLDS}
        if thresholds:
            self._server.set_thresholds(**thresholds)

    def close(self, timeout: float) -> None:
        """Refuse the waiting commands, and let the one in progress finish; refuse it too after ``timeout`` seconds."""
        self._server.stop(timeout, "the node is shutting down")
        if self.failure is None:
            self._status.enter(NodeStatus.FINALIZED, "the node is shutting down")
        self._diagnostics.stop()

    def leave(self) -> None:
        """Leave the graph, with the action and the state machine, which rclpy does not destroy along with the node.

        Either would keep the node's participant alive, and the middleware's shared memory would outlast the process.
        """
        self._goals.destroy()
        super().leave()
        self._state_machine.destroy_when_not_in_use()  # rclpy has no public call that destroys it with its services

    # --- lifecycle --------------------------------------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model and run it once."""
        return self._transition("configure", NodeStatus.UNCONFIGURED, self._configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe, and accept commands."""
        return self._transition("activate", NodeStatus.INACTIVE, self._activate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Reply to every command that has arrived, and accept no more."""
        return self._transition("deactivate", NodeStatus.READY, self._deactivate)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free the model and all stored images."""
        return self._transition("clean up", NodeStatus.INACTIVE, self._clean_up)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Reply to every command, and free the model."""
        return self._transition("shut down", NodeStatus.FINALIZED, self._shut_down)

    def _transition(self, name: str, before: int, act: Callable[[], None]) -> TransitionCallbackReturn:
        """Run a transition; if it fails, the node is in the state ``before`` and reports the reason in one line."""
        try:
            act()
        except Exception as error:
            reason = f"cannot {name}: {one_line(error)}"
            if not self.ending.is_set():
                self.get_logger().error(reason)
            self._status.enter(before, reason)
            return TransitionCallbackReturn.FAILURE
        return TransitionCallbackReturn.SUCCESS

    def _configure(self) -> None:
        began = time.monotonic()
        self.get_logger().info("loading the model ...")
        self._status.enter(NodeStatus.LOADING)
        with core_log(self.get_logger(), partial(self._status.enter, NodeStatus.LOADING)):
            loaded = self._server.load()
            while not wait([loaded], _POLL).done:
                if self.ending.is_set():
                    raise RuntimeError("the node is shutting down")
        try:
            self._health.loaded(loaded.result())
        except Exception:
            self._server.unload(0.0)
            raise
        self._status.enter(NodeStatus.INACTIVE)
        self.get_logger().info(f"ready: the model was loaded in {time.monotonic() - began:.1f} s")

    def _activate(self) -> None:
        deadline = parameters.value(self, "command_deadline", float)
        self._server.start(parameters.value(self, "queue_size"), command_deadline=deadline)
        try:
            self._subscribe()
        except Exception:
            self._deactivate()
            raise
        for name in qos.unused_overrides(self):
            self.get_logger().warning(f"ignored, {name}: the node has no such topic, or its QoS cannot be overridden")
        self._status.enter(NodeStatus.READY)

    def _deactivate(self) -> None:
        self._stop()
        self._status.enter(NodeStatus.INACTIVE)

    def _stop(self) -> None:
        """Reply to what has arrived, and forget all inputs; a server that is stopped already stays so."""
        for topic, callback in self._command_callbacks().items():
            try:
                if (subscription := self._inputs.get(topic)) is not None:
                    _take_all(subscription, callback)
            except Exception as error:
                self.get_logger().error(f"commands on {topic} may be lost: {one_line(error)}")
        for subscription in self._inputs.values():
            self.destroy_subscription(subscription)
        self._server.stop(_STOPPING, "the node was deactivated")
        with self._receiving:
            self._inputs.clear()
            self._images.clear()

    def _clean_up(self) -> None:
        if not self._server.unload(_STOPPING):
            raise RuntimeError("a command is still in progress")
        self._health.loaded({})
        self._status.enter(NodeStatus.UNCONFIGURED)

    def _shut_down(self) -> None:
        self._stop()
        freed = self._server.unload(_STOPPING)
        if freed:
            self._health.loaded({})
        self._status.enter(NodeStatus.FINALIZED, "" if freed else "a command is still in progress: its model is not freed")

    def _on_start(self) -> None:
        self.destroy_timer(self._starter)
        threading.Thread(target=self._autostart, name="autostart", daemon=True).start()

    def _autostart(self) -> None:
        steps = (self.trigger_configure, self.trigger_activate)
        if not all(step() == TransitionCallbackReturn.SUCCESS for step in steps) and not self.ending.is_set():
            self.failure = self._status.message

    def _on_lost(self, reason: str) -> None:
        self._status.enter(NodeStatus.FAILED, reason)
        self.failure = reason

    # --- subscriptions ----------------------------------------------------------------------------------------------------

    def _subscribe(self) -> None:
        images = self._images
        images.start()
        inputs: dict[str, tuple[type, Callable[..., None], QoSProfile]] = {
            images.topic: (images.message_type, self._on_image, qos.camera()),
            images.depth_topic: (images.depth_type, partial(self._on_depth, images.put_depth), qos.camera()),
            "camera_info": (CameraInfo, partial(self._on_depth, images.put_info), qos.camera()),
        }
        kinds = {"command": String, "phrase": String, "~/watch": Watch}
        for topic, callback in self._command_callbacks().items():
            inputs[topic] = (kinds[topic], callback, qos.commands())
        for topic, (kind, callback, profile) in inputs.items():
            self._inputs[topic] = qos.create_subscription(self, kind, topic, callback, profile)

    def _command_callbacks(self) -> dict[str, Callable[[bytes, MessageInfo], None]]:
        """By topic before remapping: the topics of which every message gets a reply."""
        return {
            "command": partial(self._commands.on_message, Mode.CHAT),
            "phrase": partial(self._commands.on_message, Mode.REFER),
            "~/watch": self._watch.on_message,
        }

    def _on_image(self, serialized: bytes, _: MessageInfo) -> None:
        try:
            with self._receiving:
                if not self._inputs:  # it was taken while the node was being deactivated
                    return
                self._images.put(serialized)
            self._health.image()
        except Exception as error:
            self._health.unreadable()
            self.get_logger().error(f"image dropped: {one_line(error)}", throttle_duration_sec=1.0)

    def _on_depth(self, put: Callable[[bytes], None], serialized: bytes, _: MessageInfo) -> None:
        try:
            with self._receiving:
                if self._inputs:
                    put(serialized)
        except Exception as error:
            self.get_logger().error(f"depth or camera info dropped: {one_line(error)}", throttle_duration_sec=1.0)


def _take_all(subscription: Subscription[Any], callback: Callable[[bytes, MessageInfo], None]) -> None:
    """Take the messages that are queued in the middleware, at most one queue: they would be lost with their subscription."""
    for _ in range(subscription.qos_profile.depth):
        with subscription.handle:
            taken = subscription.handle.take_message(subscription.msg_type, True)
        if taken is None:
            return
        callback(*taken)
