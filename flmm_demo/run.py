"""Runs the demo: a simulated camera and the grounding node as processes, and one command after the other.

The truth is rendered here from the camera's seed, and compared with the answer and with the image that it is about.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from rclpy.parameter import Parameter
from rclpy.parameter_client import AsyncParameterClient
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image

from flmm_core.common.output_files import mark
from flmm_core.spatial.grasp import NoGraspError, top_grasp
from flmm_core.types import GroundedAnswer
from flmm_demo.commands import DemoCommand
from flmm_demo.truth import Outcome, compare
from flmm_ros.camera_images import CameraImages, Stamp
from flmm_ros.client import AskClient, NoReplyError
from flmm_ros.conversions import location_from_message, phrase_from_message
from flmm_ros.msg import GroundedAnswer as Reply
from flmm_ros.node_processes import NodeProcesses, start_camera_and_node
from flmm_ros.pick import thing_of
from flmm_sim.gripper import MAX_OPENING, try_pick

T = TypeVar("T")

_UNREAD_IMAGES = 100
"""Images that the middleware queues while this process is busy."""
_MAX_DIFFERENCE = 1.0
"""Mean difference (of 255) between the camera's image and the rendered one above which they show different scenes."""


class Demo:
    """Sends commands to the running nodes. Use :meth:`close` at the end.

    Args:
        processes: checked while waiting, so that a node that has ended is reported at once.
        timeout: seconds to wait for a reply of the node or the camera.
        start_timeout: seconds to wait for camera, node and model at the start.

    Raises:
        NoReplyError: camera or node did not start in time.
        ChildEndedError: one of them has ended.
    """

    def __init__(self, processes: NodeProcesses, *, timeout: float, start_timeout: float) -> None:
        self._processes = processes
        self._timeout = timeout
        self._client = AskClient()
        self._images = CameraImages()
        self._client.node.create_subscription(Image, "/camera/image", self._images.add, QoSProfile(depth=_UNREAD_IMAGES))
        self._camera = AsyncParameterClient(self._client.node, "/camera")
        self._wait(self._camera.services_are_ready, start_timeout, "the camera did not start")
        self._wait(lambda: len(self._images) > 0, start_timeout, "no image arrived from the camera")
        self._client.wait_for_node(start_timeout, processes.check)
        # Commands wait while the node loads its model: a reply means that it is loaded.
        reply = self._client.wait_for_image(start_timeout, processes.check)
        if reply.status == Reply.STATUS_MODEL_FAILURE:  # the node is about to end, and its log holds the reason
            self._wait(lambda: None, 15.0, f"the node cannot answer: {reply.reason}")

    def close(self) -> None:
        """Leave the ROS graph; the nodes keep running."""
        self._client.close()

    def ask(self, command: DemoCommand) -> Outcome:
        """Show the scene, send the command, and compare the reply with the truth.

        Raises:
            NoReplyError: no reply or image came in time, or the camera shows another scene.
            ChildEndedError: a node has ended.
        """
        changed = self._show(command.seed)
        reply = self._reply(command, changed)
        if reply.status != Reply.STATUS_ANSWERED:
            height, width = command.scene.image.shape[:2]
            return Outcome(command, reply, command.scene.image, GroundedAnswer("", (), height, width), ())
        stamp = _stamp(reply)
        missing = f"the image of the reply to {command.text!r} did not arrive"
        image = self._wait(lambda: self._images.get(stamp), self._timeout, missing)
        difference = float(np.abs(image.astype(int) - command.scene.image).mean())
        if difference > _MAX_DIFFERENCE:
            raise NoReplyError(f"the camera does not show seed {command.seed}: mean difference {difference:.1f} of 255")
        height, width = image.shape[:2]
        phrases = tuple(phrase_from_message(message, height, width) for message in reply.phrases)
        answer = GroundedAnswer(reply.answer, phrases, height, width)
        grasp = simulated_grasp(command, reply) if command.turn.kind == "fetch" else ""
        return Outcome(command, reply, image, answer, compare(answer, command), grasp)

    def _reply(self, command: DemoCommand, changed: Stamp) -> Reply:
        """The reply of the node; the command is sent again until the node has an image of the new scene."""
        deadline = time.monotonic() + self._timeout
        while True:
            reply = self._client.ask(command.text, refer=command.refer, timeout=self._timeout, meanwhile=self._processes.check)
            if reply.status != Reply.STATUS_ANSWERED or _stamp(reply) >= changed:
                return reply
            if time.monotonic() > deadline:
                raise NoReplyError(f"the reply to {command.text!r} is about an old image")

    def _show(self, seed: int) -> Stamp:
        """Switch the camera to a scene; images from the returned stamp on show it."""
        future = self._camera.set_parameters([Parameter("seed", value=seed)])
        complaint = "the camera did not change its scene"
        response = self._wait(lambda: future.result() if future.done() else None, self._timeout, complaint)
        if not response.results[0].successful:
            raise NoReplyError(f"the camera refused seed {seed}: {response.results[0].reason}")
        now = self._client.node.get_clock().now().to_msg()
        changed = (now.sec, now.nanosec)
        self._images.forget(before=changed)
        self._wait(lambda: len(self._images) > 0, self._timeout, "no image of the new scene arrived")
        self._client.spin(0.1)  # the image is also on its way to the node
        return changed

    def _wait(self, ready: Callable[[], T | None], timeout: float, complaint: str) -> T:
        return self._client.wait_until(ready, timeout, complaint, self._processes.check)


def _stamp(reply: Reply) -> Stamp:
    return reply.header.stamp.sec, reply.header.stamp.nanosec


def simulated_grasp(command: DemoCommand, reply: Reply) -> str:
    """Let the simulated gripper grasp the object of an answer; returns the result in words."""
    scene = command.scene
    wanted = [index for span in command.turn.spans for index in span.objects]
    try:
        grasp = top_grasp(location_from_message(thing_of(reply).location), MAX_OPENING)
    except NoGraspError as error:
        return f"not tried, {error}"
    rotation, translation = scene.camera_pose[:3, :3], scene.camera_pose[:3, 3]
    at = rotation @ grasp.position + translation
    picks = [try_pick(scene, index, at, rotation @ grasp.rotation, grasp.opening) for index in wanted]
    lifted = any(pick.lifted for pick in picks)
    return f"lifted by {100 * max(pick.risen for pick in picks):.0f} cm" if lifted else "not lifted"


def run_demo(
    commands: Sequence[DemoCommand],
    log_dir: Path,
    node_arguments: Sequence[str],
    *,
    timeout: float,
    start_timeout: float,
    on_outcome: Callable[[Outcome], None],
    on_started: Callable[[float], None],
) -> list[Outcome]:
    """Run the whole demo; the nodes are stopped in any case.

    Args:
        commands: at least one; see :func:`flmm_demo.commands.plan`.
        log_dir: where the nodes write their logs.
        node_arguments: of the grounding node, after ``--ros-args``.
        timeout: seconds to wait for each reply.
        start_timeout: seconds to wait for camera, node and model at the start.
        on_outcome: called after each command.
        on_started: called once, with the seconds until camera and node were ready.

    Raises:
        NoReplyError: camera or node did not reply in time.
        ChildEndedError: a node has ended.
    """
    outcomes = []
    began = time.monotonic()
    with NodeProcesses(log_dir, heading=mark("demo")) as processes:
        start_camera_and_node(processes, node_arguments, commands[0].seed)
        demo = Demo(processes, timeout=timeout, start_timeout=start_timeout)
        try:
            on_started(time.monotonic() - began)
            for command in commands:
                outcome = demo.ask(command)
                on_outcome(outcome)
                outcomes.append(outcome)
        finally:
            demo.close()
    return outcomes
