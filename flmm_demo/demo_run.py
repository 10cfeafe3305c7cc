"""The demo: a simulated camera and the grounding node as processes of their own, and commands with known answers.

The truth is rendered here from the camera's seed, and compared with the image that the node answered on.
"""

from __future__ import annotations

import itertools
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from rclpy.parameter import Parameter
from rclpy.parameter_client import AsyncParameterClient
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image

from flmm_core.data.samples import REFER, REFER_ABSENT, Span, Turn
from flmm_core.evaluation.matching import is_right, match_phrases, true_masks
from flmm_core.images.masks import Overlap
from flmm_core.spatial.grasp import NoGraspError, top_grasp
from flmm_core.types import GroundedAnswer, GroundedPhrase
from flmm_ros.camera_images import CameraImages, Stamp
from flmm_ros.client import AskClient, NoReplyError
from flmm_ros.conversions import location_from_message, phrase_from_message
from flmm_ros.msg import GroundedAnswer as Reply
from flmm_ros.node_processes import NodeProcesses, start_camera_and_node
from flmm_ros.pick import thing_of
from flmm_sim.foreign_words import HELD_OUT_UNKNOWN_WORDS
from flmm_sim.gripper import WIDEST, try_pick
from flmm_sim.language import questions
from flmm_sim.renderer import TabletopRenderer
from flmm_sim.scene import Scene, scene_seed

T = TypeVar("T")

KINDS = (
    "list", "relation", "absence", "where", "fetch", "attribute", "count", "presence", "unknown", "talk", REFER, REFER_ABSENT,
)  # fmt: skip
"""Kinds of commands, in the order in which the demo plans them."""
_REFER = (REFER, REFER_ABSENT)

_UNREAD_IMAGES = 100
"""Images that the middleware keeps while this process gets no time to read them."""

LEAST_IOU = 0.5
"""A mask that shares less with the true one is called wrong."""

_PREFERRED = {
    "relation": ("left",),
    "attribute": ("color",),
    "unknown": HELD_OUT_UNKNOWN_WORDS,
    REFER_ABSENT: HELD_OUT_UNKNOWN_WORDS,
}
"""Words of which the demo likes to have one in a command of this kind."""


@dataclass(frozen=True)
class Ask:
    """A command of the demo and its truth."""

    seed: int
    scene: Scene
    turn: Turn

    @property
    def refer(self) -> bool:
        """Whether a phrase is sent, not a question."""
        return self.turn.kind in _REFER

    @property
    def text(self) -> str:
        """What is sent."""
        return self.turn.question

    def true_mask(self, objects: tuple[int, ...]) -> np.ndarray:
        """Where some things of the scene are, ``[H, W]`` bool."""
        return np.any([self.scene.objects[index].mask for index in objects], axis=0)


@dataclass(frozen=True)
class Pointing:
    """What the node made of a phrase, compared with the truth."""

    phrase: GroundedPhrase
    iou: float | None
    """With the true mask; None if the phrase names nothing that is there."""

    @property
    def fault(self) -> str:
        """What is wrong about it; empty if it rightly points somewhere, or rightly nowhere."""
        if self.iou is None:
            return "nothing to point at" if self.phrase.mask.any() else ""
        if self.phrase.absent:
            return "it is there"
        return "" if self.iou >= LEAST_IOU else f"IoU {self.iou:.2f}"


@dataclass(frozen=True)
class Outcome:
    """What came back for a command."""

    ask: Ask
    reply: Reply
    image: np.ndarray
    """``[H, W, 3]`` uint8 RGB: the camera's image with the stamp of the reply."""
    answer: GroundedAnswer
    pointings: tuple[Pointing, ...]
    """One for each phrase of the answer."""
    picked: str = ""
    """What became of the thing that a simulated gripper was to take, in words; empty if the command was no such order."""

    @property
    def answered(self) -> bool:
        """Whether there was an answer and no refusal."""
        return bool(self.reply.status == Reply.STATUS_ANSWERED)

    @property
    def fault(self) -> str:
        """What is wrong, in words for people; empty if the words are the true answer and each thing is rightly pointed at."""
        if not self.answered:
            return f"refused: {self.reply.reason}"
        turn = self.ask.turn
        if not is_right(self.answer.text, turn.answer):
            return f"expected: {turn.answer}"
        spans = [turn.spans[s] for p, s in match_phrases(self.answer.phrases, turn, right=True) if p is None and s is not None]
        missed = [(turn.answer[span.start : span.end], "not pointed at") for span in spans if span.objects]
        faulty = [(pointing.phrase.text, pointing.fault) for pointing in self.pointings if pointing.fault]
        return "; ".join(f"“{words}”: {fault}" for words, fault in faulty + missed)


def plan(count: int, scenes: int, seed: int) -> list[Ask]:
    """Choose commands of all kinds over several scenes that no training ever saw, ordered by scene.

    Args:
        count: commands.
        scenes: different scenes.
        seed: seed of scenes and questions.
    """
    seeds = [scene_seed("demo", seed, index) for index in range(scenes)]
    with TabletopRenderer() as renderer:
        rendered = [renderer.sample(scene) for scene in seeds]
    amounts = dict.fromkeys(KINDS, 6)
    turns = []
    for at, scene in zip(seeds, rendered, strict=True):
        asked = questions(scene, np.random.default_rng(at), turns=amounts, unknown_words=HELD_OUT_UNKNOWN_WORDS)
        turns.append([single for turn in asked for single in (_phrases(turn) if turn.kind in _REFER else [turn])])
    asks: list[tuple[int, Ask]] = []
    missed = 0
    kinds = itertools.cycle(KINDS)
    while len(asks) < count:
        kind = next(kinds)
        for at in ((len(asks) + offset) % scenes for offset in range(scenes)):
            turn = _take(turns[at], kind)
            if turn is not None:
                asks.append((at, Ask(seeds[at], rendered[at], turn)))
                missed = 0
                break
        else:
            missed += 1
        if missed >= len(KINDS):
            raise ValueError(f"{scenes} scenes have questions for {len(asks)} commands only: expected {count}; use more scenes")
    return [ask for _, ask in sorted(asks, key=lambda entry: entry[0])]


def _take(turns: list[Turn], kind: str) -> Turn | None:
    """Remove and return a turn of this kind, if there is one."""
    found = [turn for turn in turns if turn.kind == kind]
    if not found:
        return None
    words = _PREFERRED.get(kind, ())
    chosen = next((turn for turn in found if any(word in turn.question.lower() for word in words)), found[0])
    turns.remove(chosen)
    return chosen


def _phrases(turn: Turn) -> list[Turn]:
    """A turn of refer mode as turns of one phrase each, which is all that a message holds: of what is there, or is not."""
    spans = [span for span in turn.spans if bool(span.objects) == (turn.kind == REFER)]
    phrases = [turn.answer[span.start : span.end] for span in spans]
    return [
        Turn(turn.kind, phrase, phrase, (Span(0, len(phrase), span.objects),))
        for phrase, span in zip(phrases, spans, strict=True)
    ]


def demo_environment() -> dict[str, str]:
    """A ROS graph that never leaves this machine: in the domain that ROS_DOMAIN_ID names, or else in a random one."""
    return {
        "ROS_DOMAIN_ID": os.environ.get("ROS_DOMAIN_ID") or str(random.SystemRandom().randint(1, 100)),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "RMW_IMPLEMENTATION": "rmw_fastrtps_cpp",
    }


class Demo:
    """Asks the running nodes. Use :meth:`close` in the end.

    Args:
        processes: checked while waiting, so that a node that died is noticed at once.
        timeout: seconds to wait for a reply, of the node or the camera.
        start_timeout: seconds to wait for camera, node and model at the start.
    """

    def __init__(self, processes: NodeProcesses, *, timeout: float, start_timeout: float) -> None:
        self._processes = processes
        self._timeout = timeout
        self._client = AskClient()
        self._images = CameraImages()
        self._client.node.create_subscription(Image, "/camera/image", self._images.add, QoSProfile(depth=_UNREAD_IMAGES))
        self._camera = AsyncParameterClient(self._client.node, "/camera")
        self._wait(self._camera.services_are_ready, start_timeout, "the camera did not start")
        self._wait(lambda: len(self._images) > 0, start_timeout, "no image came from the camera")
        self._client.wait_for_node(start_timeout, processes.check)
        # Commands wait while the node loads its model: the reply to this one says that it has.
        reply = self._client.wait_for_image(start_timeout, processes.check)
        if reply.status == Reply.STATUS_MODEL_FAILURE:  # the node is about to end, and its log says why
            self._wait(lambda: None, 15.0, f"the node cannot answer: {reply.reason}")

    def close(self) -> None:
        """Leave the graph; the nodes stay."""
        self._client.close()

    def ask(self, ask: Ask) -> Outcome:
        """Show the scene, send the command, and compare the reply with the truth."""
        changed = self._show(ask.seed)
        reply = self._reply(ask, changed)
        if reply.status != Reply.STATUS_ANSWERED:
            height, width = ask.scene.image.shape[:2]
            return Outcome(ask, reply, ask.scene.image, GroundedAnswer("", (), height, width), ())
        stamp = _stamp(reply)
        image = self._wait(lambda: self._images.get(stamp), self._timeout, f"the image of the reply to {ask.text!r} never came")
        difference = float(np.abs(image.astype(int) - ask.scene.image).mean())
        if difference > 1.0:
            raise NoReplyError(f"the camera does not show seed {ask.seed}: mean difference {difference:.1f} of 255")
        height, width = image.shape[:2]
        phrases = tuple(phrase_from_message(message, height, width) for message in reply.phrases)
        answer = GroundedAnswer(reply.answer, phrases, height, width)
        return Outcome(ask, reply, image, answer, compare(answer, ask), pick(ask, reply) if ask.turn.kind == "fetch" else "")

    def _reply(self, ask: Ask, changed: Stamp) -> Reply:
        """The node's reply; the command is sent again while the node has no image of the new scene yet."""
        deadline = time.monotonic() + self._timeout
        while True:
            reply = self._client.ask(ask.text, refer=ask.refer, timeout=self._timeout, meanwhile=self._processes.check)
            if reply.status != Reply.STATUS_ANSWERED or _stamp(reply) >= changed:
                return reply
            if time.monotonic() > deadline:
                raise NoReplyError(f"the reply to {ask.text!r} is about an old image")

    def _show(self, seed: int) -> Stamp:
        """Switch the camera to a scene; returns a stamp from which on its images show it."""
        future = self._camera.set_parameters([Parameter("seed", value=seed)])
        complaint = "the camera did not change its scene"
        response = self._wait(lambda: future.result() if future.done() else None, self._timeout, complaint)
        if not response.results[0].successful:
            raise NoReplyError(f"the camera refused seed {seed}: {response.results[0].reason}")
        now = self._client.node.get_clock().now().to_msg()
        changed = (now.sec, now.nanosec)
        self._images.forget(before=changed)
        self._wait(lambda: len(self._images) > 0, self._timeout, "no image of the new scene came")
        self._client.spin(0.1)  # the node gets it at the same time, on another way
        return changed

    def _wait(self, ready: Callable[[], T | None], timeout: float, complaint: str) -> T:
        return self._client.wait_until(ready, timeout, complaint, self._processes.check)


def _stamp(reply: Reply) -> Stamp:
    return reply.header.stamp.sec, reply.header.stamp.nanosec


def compare(answer: GroundedAnswer, ask: Ask) -> tuple[Pointing, ...]:
    """Each phrase of an answer with the truth about it."""
    truths = true_masks(answer, ask.turn, ask.true_mask)
    return tuple(
        Pointing(phrase, None if truth is None else Overlap.of(phrase.mask, truth).iou)
        for phrase, truth in zip(answer.phrases, truths, strict=True)
    )


def pick(ask: Ask, reply: Reply) -> str:
    """Let the simulated gripper take what an answer points at; says what became of it."""
    scene = ask.scene
    wanted = [index for span in ask.turn.spans for index in span.objects]
    try:
        grasp = top_grasp(location_from_message(thing_of(reply).location), WIDEST)
    except NoGraspError as error:
        return f"not tried, {error}"
    rotation, translation = scene.camera_pose[:3, :3], scene.camera_pose[:3, 3]
    at = rotation @ grasp.position + translation
    picks = [try_pick(scene, index, at, rotation @ grasp.rotation, grasp.opening) for index in wanted]
    return f"lifted by {100 * max(pick.risen for pick in picks):.0f} cm" if any(p.lifted for p in picks) else "not lifted"


def run_demo(
    asks: Sequence[Ask],
    log_dir: Path,
    node_arguments: Sequence[str],
    *,
    timeout: float,
    start_timeout: float,
    on_outcome: Callable[[Outcome], None],
    on_started: Callable[[float], None],
) -> list[Outcome]:
    """Run the whole demo; the nodes are stopped whatever happens.

    Raises:
        NoReplyError, ChildEndedError: something did not answer, or died.
    """
    outcomes = []
    began = time.monotonic()
    with NodeProcesses(log_dir) as processes:
        start_camera_and_node(processes, node_arguments, asks[0].seed)
        demo = Demo(processes, timeout=timeout, start_timeout=start_timeout)
        try:
            on_started(time.monotonic() - began)
            for ask in asks:
                outcome = demo.ask(ask)
                on_outcome(outcome)
                outcomes.append(outcome)
        finally:
            demo.close()
    return outcomes
