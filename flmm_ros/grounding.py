"""The node: commands and images in, grounded answers out.

It translates between topics and a grounding pipeline and does no maths. Images are kept unread until a command needs the
newest one; commands are worked off by one thread, so the executor is never blocked; each command gets exactly one reply.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from builtin_interfaces.msg import Time as TimeMsg
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.clock import Clock, ClockType
from rclpy.qos import QoSProfile
from rclpy.serialization import serialize_message
from rclpy.subscription import MessageInfo
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from std_msgs.msg import Header, String

from flmm_core import config as core_config
from flmm_core.config import GroundingConfig
from flmm_core.drawing.overlay import draw_overlay
from flmm_core.errors import CommandCancelledError, CommandError, MemoryFullError
from flmm_core.location import Location, NoDepthError
from flmm_core.types import GroundedAnswer
from flmm_core.watcher import Watcher
from flmm_ros import conversions, parameters, qos
from flmm_ros.core_log import core_log
from flmm_ros.goals import Goal, GoalServer
from flmm_ros.health import Health
from flmm_ros.msg import GroundedAnswer as GroundedAnswerMsg
from flmm_ros.msg import GroundedPhrase as GroundedPhraseMsg
from flmm_ros.msg import Location as LocationMsg
from flmm_ros.msg import StageDurations
from flmm_ros.requests import (
    Arrival,
    ImageMessage,
    LatestImage,
    RefusedError,
    Request,
    check_age,
    clean_text,
    decode_image,
    decode_text,
    no_image,
)
from flmm_ros.space import Space, View
from flmm_ros.spinning import RunnableNode, one_line
from flmm_ros.worker import Worker

_DIAGNOSTICS = 1.0
"""Seconds between two diagnostics."""

_SENDING = 0.3
"""Seconds for an answer that is ready at the last moment to be handed to the middleware."""


class Pipeline(Protocol):
    """What the node needs of :class:`flmm_core.pipeline.GroundingPipeline`."""

    def encode(self, image: np.ndarray) -> Any:
        """A handle of ``[H, W, 3]`` uint8 RGB for the commands about it."""

    def chat(self, image: Any, text: str, *, max_new_tokens: int | None = None, watch: Watcher | None = None) -> GroundedAnswer:
        """Answer and ground."""

    def refer(self, image: Any, phrases: Sequence[str], *, watch: Watcher | None = None) -> GroundedAnswer:
        """Ground given phrases."""

    def describe(self) -> Mapping[str, str]:
        """What it is and where it runs, for people."""

    def device_memory(self) -> int:
        """Bytes that it has on a GPU; 0 without one."""


def load_pipeline(config: GroundingConfig) -> Pipeline:
    """The real pipeline; imports transformers, which takes seconds, and keeps its bars and advice out of the node's log."""
    from transformers.utils import logging

    import flmm_tabletop
    from flmm_core.pipeline import GroundingPipeline

    flmm_tabletop.register()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    return GroundingPipeline.from_config(config)


class GroundingNode(RunnableNode):
    """Answers commands about the newest image.

    Args:
        load: builds the pipeline; called once, in the worker's thread.
    """

    def __init__(self, *, load: Callable[[GroundingConfig], Pipeline] = load_pipeline) -> None:
        super().__init__("grounding")
        self._load = load
        self._config = parameters.declare_grounding(self)
        self._ids = itertools.count(1)
        self._latest = LatestImage()
        self._space = Space()
        self._health = Health()
        self._requests: dict[Goal, Request] = {}
        """Of the goals that are not finished."""
        self._pipeline: Pipeline | None = None
        self._converted: tuple[Arrival, np.ndarray, Header] | None = None
        """The image of the last command."""
        self._worker: Worker[Request] = Worker(
            parameters.value(self, "queue_size"), self._handle, self._abandon, prepare=self._prepare, failed=self._on_failure
        )
        self._make_publishers()
        self._make_subscriptions()
        self._goals = GoalServer(self, refusal=self._no_goal, take=self._on_goal, cancelled=self._on_cancelled)
        # By a clock that goes on when simulated time stands still.
        self.create_timer(_DIAGNOSTICS, self._publish_diagnostics, clock=Clock(clock_type=ClockType.STEADY_TIME))
        self._worker.start()

    def _make_publishers(self) -> None:
        overrides = qos.overridable()
        self._answers = self.create_publisher(GroundedAnswerMsg, "~/answer", qos.commands(), qos_overriding_options=overrides)
        self._texts = self.create_publisher(String, "~/answer_text", qos.commands(), qos_overriding_options=overrides)
        self._label_maps = self.create_publisher(Image, "~/label_mask", qos.images(), qos_overriding_options=overrides)
        self._overlays = self.create_publisher(Image, "~/overlay", qos.images(), qos_overriding_options=overrides)
        self._objects = self.create_publisher(PointCloud2, "~/objects", qos.images(), qos_overriding_options=overrides)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", qos.diagnostics())

    def _make_subscriptions(self) -> None:
        chat, refer = GroundedAnswerMsg.MODE_CHAT, GroundedAnswerMsg.MODE_REFER
        if self._compressed:
            self._subscribe(CompressedImage, "image/compressed", self._on_image, qos.camera())
        else:
            self._subscribe(Image, "image", self._on_image, qos.camera())
        self._subscribe(Image, "depth", lambda serialized, _: self._on_space(self._space.put_depth, serialized), qos.camera())
        self._subscribe(
            CameraInfo, "camera_info", lambda serialized, _: self._on_space(self._space.put_info, serialized), qos.camera()
        )
        self._subscribe(String, "command", lambda serialized, info: self._on_command(serialized, info, chat), qos.commands())
        self._subscribe(String, "phrase", lambda serialized, info: self._on_command(serialized, info, refer), qos.commands())

    def _subscribe(self, kind: type, topic: str, callback: Callable[[bytes, MessageInfo], None], profile: QoSProfile) -> None:
        """Receive serialized messages: a malformed one is refused like any other, and most images are never read."""
        topic = self._beside(topic)
        self.create_subscription(kind, topic, callback, profile, raw=True, qos_overriding_options=qos.overridable())

    def _beside(self, topic: str) -> str:
        """``image/compressed`` lies beside the topic that ``image`` is remapped to."""
        base, _, rest = topic.partition("/")
        return f"{self.resolve_topic_name(base)}/{rest}" if rest else topic

    @property
    def _compressed(self) -> bool:
        return bool(parameters.value(self, "image_transport") == "compressed")

    def close(self, timeout: float) -> None:
        """Refuse what waits, and let the command in work finish; refuse it too if it takes longer than ``timeout``."""
        self._worker.close(timeout)

    # --- executor's thread ------------------------------------------------------------------------------------------------

    def _on_image(self, serialized: bytes, _: MessageInfo) -> None:
        try:
            self._latest.put(serialized, self.get_clock().now())
            self._health.image()
        except Exception as error:
            self._health.unreadable()
            self.get_logger().error(f"image dropped: {one_line(error)}")

    def _on_space(self, put: Callable[[bytes], None], serialized: bytes) -> None:
        try:
            put(serialized)
        except Exception as error:
            self.get_logger().error(f"depth or camera info dropped: {one_line(error)}")

    def _on_command(self, serialized: bytes, info: MessageInfo, mode: int) -> None:
        request = Request(next(self._ids), mode, "", info["source_timestamp"])
        try:
            request = replace(request, text=decode_text(serialized))
        except RefusedError as refusal:
            self._refuse(request, refusal)
            return
        self._offer(request)

    def _on_goal(self, goal: Goal) -> None:
        now = self.get_clock().now().nanoseconds
        self._offer(Request(next(self._ids), goal.request.mode, goal.request.text, now, goal))

    def _no_goal(self) -> str:
        full = self._worker.closed or self._worker.waiting >= parameters.value(self, "queue_size")
        return self._no_room().reason if full else ""

    def _on_cancelled(self, goal: Goal) -> None:
        request = self._requests.get(goal)
        if request is not None:
            self._refuse(request, _cancelled())

    def _offer(self, request: Request) -> None:
        if request.goal is not None:
            self._requests[request.goal] = request
        try:
            clean_text(request.text, parameters.value(self, "max_command_length"))
            if not self._worker.offer(request):
                raise self._no_room()
        except RefusedError as refusal:
            self._refuse(request, refusal)
        except Exception as error:
            self._refuse(request, _model_failure(error))

    def _publish_diagnostics(self) -> None:
        try:
            status = self._health.status(
                self.get_fully_qualified_name(),
                waiting=self._worker.waiting,
                capacity=parameters.value(self, "queue_size"),
                oldest_image=parameters.value(self, "max_image_age", float),
                slow_answer=parameters.value(self, "slow_answer", float),
                device_memory=self._pipeline.device_memory() if self._pipeline else 0,
            )
            header = Header(stamp=self.get_clock().now().to_msg())
            self._diagnostics.publish(DiagnosticArray(header=header, status=[status]))
        except Exception as error:
            self.get_logger().error(f"no diagnostics: {one_line(error)}")

    def _no_room(self) -> RefusedError:
        if self._worker.closed:
            return self._stopped()
        size = parameters.value(self, "queue_size")
        return RefusedError(GroundedAnswerMsg.STATUS_BUSY, f"busy: {size} commands are waiting already (queue_size)")

    def _stopped(self) -> RefusedError:
        if self.failure is not None:
            return RefusedError(GroundedAnswerMsg.STATUS_MODEL_FAILURE, self.failure)
        return RefusedError(GroundedAnswerMsg.STATUS_SHUTTING_DOWN, "the node is shutting down")

    # --- worker's thread --------------------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        began = time.monotonic()
        self.get_logger().info("loading the model ...")
        with core_log(self.get_logger(), self._health.progress):
            pipeline = self._load(self._config)
        # A first pass over a grey image in both modes: the first command is then as fast as the others, and parts that
        # do not fit together are noticed now.
        grey = pipeline.encode(np.full((240, 320, 3), 128, np.uint8))
        pipeline.refer(grey, ["thing"])
        pipeline.chat(grey, "thing", max_new_tokens=2)
        self._pipeline = pipeline
        self._health.ready(pipeline.describe())
        self.get_logger().info(f"ready: the model was loaded in {time.monotonic() - began:.1f} s")

    def _on_failure(self, error: BaseException) -> None:
        self.failure = f"cannot serve: {one_line(error)}"
        self._health.failed(self.failure)

    def _handle(self, request: Request) -> None:
        try:
            self._answer(request)
        except RefusedError as refusal:
            self._refuse(request, refusal)
        except CommandError as error:
            reason = f"the command cannot be used: {one_line(error)}"
            self._refuse(request, RefusedError(GroundedAnswerMsg.STATUS_BAD_COMMAND, reason))
        except CommandCancelledError:
            self._refuse(request, _cancelled())
        except MemoryFullError as error:
            self._refuse(request, RefusedError(GroundedAnswerMsg.STATUS_OUT_OF_MEMORY, one_line(error)))
        except Exception as error:
            self._refuse(request, _model_failure(error))

    def _answer(self, request: Request) -> None:
        began = time.monotonic()
        image, header, conversion, replaced = self._image_for(request)
        paired = time.monotonic()
        view = self._view(request, header, image)
        conversion += time.monotonic() - paired
        assert self._pipeline is not None, "commands are worked off once it is loaded"
        words = clean_text(request.text, parameters.value(self, "max_command_length"))
        if request.mode == GroundedAnswerMsg.MODE_REFER:
            answer = self._pipeline.refer(self._pipeline.encode(image), [words], watch=request.goal)
        else:
            limit = self._longest_answer(request)
            answer = self._pipeline.chat(self._pipeline.encode(image), words, max_new_tokens=limit, watch=request.goal)
        grounded = time.monotonic()
        phrases, points = _phrase_messages(answer, header, view)
        message = GroundedAnswerMsg(
            header=header,
            request_id=request.request_id,
            command_stamp=_time_message(request.stamp),
            mode=request.mode,
            command=request.text,
            status=GroundedAnswerMsg.STATUS_ANSWERED,
            answer=answer.text,
            phrases=phrases,
            left_out=answer.left_out,
            image_height=answer.image_height,
            image_width=answer.image_width,
        )
        conversion += time.monotonic() - grounded
        message.durations = conversions.durations_message(
            answer.seconds,
            waiting=began - request.arrived,
            conversion=conversion,
            total=time.monotonic() - request.arrived,
        )
        if not self._reply(request, message):
            return  # the node is ending and has refused it, or it cannot be sent
        self._health.answered(message.durations, replaced)
        self._publish_images(request, message, answer, image)
        self._publish_points(points, header)
        self.get_logger().info(
            f"request {request.request_id}: {len(answer.phrases)} phrases in {message.durations.total:.2f} s"
            f" ({replaced} images skipped since the last)"
        )

    def _view(self, request: Request, header: Header, image: np.ndarray) -> View:
        """Depth of the image; it never costs a command its masks."""
        if request.goal is not None and len(request.goal.request.image.data):
            return View(reason="the goal brought an image of its own, which has no depth")
        tolerance, most = parameters.value(self, "depth_tolerance", float), parameters.value(self, "max_image_pixels")
        return self._space.view(header, *image.shape[:2], tolerance=tolerance, max_pixels=most)

    def _longest_answer(self, request: Request) -> int:
        limit = request.goal.request.max_new_tokens if request.goal is not None else 0
        try:
            core_config.check("max_new_tokens", limit or 1)
        except ValueError as error:
            raise RefusedError(GroundedAnswerMsg.STATUS_BAD_COMMAND, one_line(error)) from error
        return limit or parameters.value(self, "max_new_tokens")

    def _image_for(self, request: Request) -> tuple[np.ndarray, Header, float, int]:
        """The image of a goal, or the newest one.

        Returns:
            Image, its header, the seconds of conversion, and how many images were replaced unread since the last command.
        """
        if request.goal is not None and len(request.goal.request.image.data):
            began = time.monotonic()
            message = request.goal.request.image
            return self._read(message), message.header, time.monotonic() - began, 0
        arrival, replaced = self._latest.get()
        if arrival is None:
            topic = self.resolve_topic_name(self._beside("image/compressed" if self._compressed else "image"))
            raise no_image(topic, self.count_publishers(topic))
        return *self._convert(arrival), replaced

    def _read(self, message: ImageMessage) -> np.ndarray:
        read = conversions.image_from_message if isinstance(message, Image) else conversions.image_from_compressed
        try:
            return read(message, parameters.value(self, "max_image_pixels"), parameters.value(self, "significant_bits"))
        except conversions.BadImageError as error:
            raise RefusedError(GroundedAnswerMsg.STATUS_BAD_IMAGE, one_line(error), message.header) from error

    def _convert(self, arrival: Arrival) -> tuple[np.ndarray, Header, float]:
        """The newest image as an array, unless it was converted for the last command.

        Returns:
            Image, its header, and the seconds of conversion.
        """
        began = time.monotonic()
        if self._converted is not None and self._converted[0] is arrival:
            _, image, header = self._converted
            self._check_age(arrival, header)
            return image, header, time.monotonic() - began
        message = decode_image(arrival, CompressedImage if self._compressed else Image)
        self._check_age(arrival, message.header)
        image = self._read(message)
        self._converted = (arrival, image, message.header)
        return image, message.header, time.monotonic() - began

    def _check_age(self, arrival: Arrival, header: Header) -> None:
        check_age(arrival, header, self.get_clock().now(), parameters.value(self, "max_image_age", float))

    def _publish_images(self, request: Request, message: GroundedAnswerMsg, answer: GroundedAnswer, image: np.ndarray) -> None:
        """What goes with an answer. The reply is out: what goes wrong here is no refusal any more."""
        try:
            if request.spoken:
                self._texts.publish(String(data=answer.text))
            self._label_maps.publish(conversions.label_map(answer, message.header))
            if self._overlays.get_subscription_count() > 0:
                overlay = draw_overlay(image, answer, command=message.command)
                self._overlays.publish(conversions.image_message(overlay, "rgb8", message.header))
        except Exception as error:
            self.get_logger().error(f"request {message.request_id}: no label mask or overlay: {one_line(error)}")

    def _publish_points(self, points: Sequence[tuple[int, np.ndarray]], header: Header) -> None:
        try:
            self._objects.publish(conversions.points_message(points, header))
        except Exception as error:
            self.get_logger().error(f"no points: {one_line(error)}")

    # --- either thread ----------------------------------------------------------------------------------------------------

    def _abandon(self, request: Request) -> None:
        self._refuse(request, self._stopped())
        request.replied.wait(_SENDING)  # the worker may have claimed it just now: its answer must be out before the node ends

    def _reply(self, request: Request, message: GroundedAnswerMsg) -> bool:
        """Send the one reply to a request; False if it has another one, or if a refusal went out in place of this one."""
        if not request.claim():
            return False
        if failure := self._send(request, message):
            refusal = RefusedError(GroundedAnswerMsg.STATUS_MODEL_FAILURE, f"the answer cannot be sent: {failure}")
            self.get_logger().error(f"request {request.request_id} refused: {refusal.reason}")
            self._send(request, _refusal_message(request, refusal, request.text))
        request.replied.set()
        return not failure

    def _send(self, request: Request, message: GroundedAnswerMsg) -> str:
        """Hand a reply to the middleware; returns why that failed, or nothing."""
        try:
            if request.goal is None:
                self._answers.publish(message)
            else:
                serialize_message(message)  # a result that cannot be sent would be lost without a word
                request.goal.finish(message)
                self._goals.forget(request.goal)
                self._requests.pop(request.goal, None)
        except Exception as error:
            return one_line(error)
        return ""

    def _refuse(self, request: Request, refusal: RefusedError) -> None:
        too_long = refusal.status == GroundedAnswerMsg.STATUS_COMMAND_TOO_LONG
        command = request.text[: parameters.value(self, "max_command_length")] if too_long else request.text
        if not self._reply(request, _refusal_message(request, refusal, command)):
            return
        self._health.refused(refusal.status, refusal.reason)
        self._say_refusal(request, refusal)
        line = f"request {request.request_id} refused: {refusal.reason}"
        if refusal.status == GroundedAnswerMsg.STATUS_MODEL_FAILURE:
            self.get_logger().error(line)
        else:  # rclpy allows one severity for each line of code
            self.get_logger().warning(line)

    def _say_refusal(self, request: Request, refusal: RefusedError) -> None:
        """For who listens only: a question is never met with silence."""
        try:
            if request.spoken:
                self._texts.publish(String(data=refusal.reason))
        except Exception as error:
            self.get_logger().error(f"request {request.request_id}: its refusal cannot be said: {one_line(error)}")


def _refusal_message(request: Request, refusal: RefusedError, command: str) -> GroundedAnswerMsg:
    return GroundedAnswerMsg(
        header=refusal.header or Header(),
        request_id=request.request_id,
        command_stamp=_time_message(request.stamp),
        mode=request.mode,
        command=command,
        status=refusal.status,
        reason=refusal.reason,
        durations=StageDurations(total=time.monotonic() - request.arrived),
    )


def _time_message(nanoseconds: int) -> TimeMsg:
    return TimeMsg(sec=nanoseconds // 10**9, nanosec=nanoseconds % 10**9)


def _phrase_messages(
    answer: GroundedAnswer, header: Header, view: View
) -> tuple[list[GroundedPhraseMsg], list[tuple[int, np.ndarray]]]:
    """The phrases, and of those that are located label and points; labels count up from 1."""
    messages, points = [], []
    for label, phrase in enumerate(answer.phrases, start=1):
        located = _locate(view, phrase.mask)
        if isinstance(located, Location):
            points.append((label, located.points))
            place = conversions.location_message(located)
        else:
            place = LocationMsg(reason=located)
        messages.append(conversions.phrase_message(phrase, label, header, place))
    return messages, points


def _locate(view: View, mask: np.ndarray) -> Location | str:
    """Where it is, or why that is not known."""
    try:
        return view.locate(mask)
    except NoDepthError as error:
        return one_line(error)


def _cancelled() -> RefusedError:
    return RefusedError(GroundedAnswerMsg.STATUS_CANCELLED, "the client cancelled the command")


def _model_failure(error: Exception) -> RefusedError:
    return RefusedError(GroundedAnswerMsg.STATUS_MODEL_FAILURE, f"the model failed: {one_line(error)}")
