"""The node: commands and pictures in, grounded answers out.

It translates between topics and a grounding pipeline and does no maths. Pictures are kept unread until a command needs the
newest one; commands are worked off by one thread, so the executor is never blocked; each command gets exactly one reply.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
from std_msgs.msg import Header, String

from flmm_core.config import GroundingConfig
from flmm_core.drawing.overlay import draw_overlay
from flmm_core.types import GroundedAnswer
from flmm_ros import conversions, parameters, qos
from flmm_ros.msg import GroundedAnswer as GroundedAnswerMsg
from flmm_ros.msg import StageDurations
from flmm_ros.requests import (
    Arrival,
    LatestImage,
    RefusedError,
    Request,
    check_age,
    clean_text,
    decode_image,
    decode_text,
    no_image,
)
from flmm_ros.spinning import RunnableNode, one_line, run_node
from flmm_ros.worker import Worker


class Pipeline(Protocol):
    """What the node needs of :class:`flmm_core.pipeline.GroundingPipeline`."""

    def set_image(self, picture: np.ndarray) -> Any:
        """Encode ``[H, W, 3]`` uint8 RGB for the commands that follow."""

    def chat(self, text: str, *, max_new_tokens: int | None = None) -> GroundedAnswer:
        """Answer and ground."""

    def refer(self, phrases: Sequence[str]) -> GroundedAnswer:
        """Ground given phrases."""


def load_pipeline(config: GroundingConfig) -> Pipeline:
    """The real pipeline; imports PyTorch, which takes seconds."""
    import flmm_tabletop  # noqa: F401  makes the shipped model known
    from flmm_core.pipeline import GroundingPipeline

    return GroundingPipeline.from_config(config)


class GroundingNode(RunnableNode):
    """Answers commands about the newest picture.

    Args:
        load: builds the pipeline; called once, in the worker's thread.
    """

    def __init__(self, *, load: Callable[[GroundingConfig], Pipeline] = load_pipeline) -> None:
        super().__init__("grounding")
        self._load = load
        self._config = parameters.declare_grounding(self)
        self._ids = itertools.count(1)
        self._latest = LatestImage()
        self._encoded: tuple[Arrival, np.ndarray, Header] | None = None
        """The picture that the pipeline holds."""
        self._in_work: Request | None = None
        self._worker: Worker[Request] = Worker(
            parameters.value(self, "queue_size"), self._handle, self._abandon, prepare=self._prepare, failed=self._on_failure
        )
        self._make_publishers()
        self._make_subscriptions()
        self._worker.start()

    def _make_publishers(self) -> None:
        own = qos.overridable()
        self._answers = self.create_publisher(GroundedAnswerMsg, "~/answer", qos.commands(), qos_overriding_options=own)
        self._texts = self.create_publisher(String, "~/answer_text", qos.commands(), qos_overriding_options=own)
        self._label_maps = self.create_publisher(Image, "~/label_mask", qos.pictures(), qos_overriding_options=own)
        self._overlays = self.create_publisher(Image, "~/overlay", qos.pictures(), qos_overriding_options=own)

    def _make_subscriptions(self) -> None:
        chat, refer = GroundedAnswerMsg.MODE_CHAT, GroundedAnswerMsg.MODE_REFER
        self._subscribe(Image, "image", self._on_image, qos.camera())
        self._subscribe(String, "command", lambda serialized: self._on_command(serialized, chat), qos.commands())
        self._subscribe(String, "phrase", lambda serialized: self._on_command(serialized, refer), qos.commands())

    def _subscribe(self, kind: type, topic: str, callback: Callable[[bytes], None], profile: QoSProfile) -> None:
        """Receive serialized messages: a malformed one is refused like any other, and most pictures are never read."""
        self.create_subscription(kind, topic, callback, profile, raw=True, qos_overriding_options=qos.overridable())

    def close(self, timeout: float = 10.0) -> bool:
        """Refuse what waits, and let the command in work finish.

        Returns:
            Whether the worker ended in time; if not, its command was refused.
        """
        ended = self._worker.close(timeout)
        if not ended and self._in_work is not None:
            self._abandon(self._in_work)
        return ended

    # --- executor's thread ------------------------------------------------------------------------------------------------

    def _on_image(self, serialized: bytes) -> None:
        try:
            self._latest.put(serialized, self.get_clock().now())
        except Exception as error:
            self.get_logger().error(f"picture dropped: {one_line(error)}")

    def _on_command(self, serialized: bytes, mode: int) -> None:
        request = Request(next(self._ids), mode, "")
        try:
            request = Request(request.request_id, mode, decode_text(serialized), request.arrived)
            clean_text(request.text, parameters.value(self, "max_command_length"))
            if not self._worker.offer(request):
                raise self._no_room()
        except RefusedError as refusal:
            self._refuse(request, refusal)
        except Exception as error:
            self._refuse(request, _model_failure(error))

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
        self._pipeline = self._load(self._config)
        # A first pass over a grey picture: the first command is then as fast as the others, and parts that do not fit
        # together are noticed now.
        self._pipeline.set_image(np.full((240, 320, 3), 128, np.uint8))
        self._pipeline.refer(["thing"])
        self.get_logger().info(f"ready: the model was loaded in {time.monotonic() - began:.1f} s")

    def _on_failure(self, error: BaseException) -> None:
        self.failure = f"cannot serve: {one_line(error)}"

    def _abandon(self, request: Request) -> None:
        self._refuse(request, self._stopped())

    def _handle(self, request: Request) -> None:
        self._in_work = request
        try:
            self._answer(request)
        except RefusedError as refusal:
            self._refuse(request, refusal)
        except Exception as error:
            self._encoded = None  # what the pipeline holds is unknown now
            self._refuse(request, _model_failure(error))
        finally:
            self._in_work = None

    def _answer(self, request: Request) -> None:
        began = time.monotonic()
        arrival, replaced = self._latest.get()
        if arrival is None:
            topic = self.resolve_topic_name("image")
            raise no_image(topic, self.count_publishers(topic))
        picture, header, conversion = self._set_image(arrival)
        words = clean_text(request.text, parameters.value(self, "max_command_length"))
        if request.mode == GroundedAnswerMsg.MODE_REFER:
            answer = self._pipeline.refer([words])
        else:
            answer = self._pipeline.chat(words, max_new_tokens=parameters.value(self, "max_new_tokens"))
        grounded = time.monotonic()
        message = GroundedAnswerMsg(
            header=header,
            request_id=request.request_id,
            mode=request.mode,
            command=request.text,
            status=GroundedAnswerMsg.STATUS_ANSWERED,
            answer=answer.text,
            phrases=conversions.phrase_messages(answer.phrases, header),
            image_height=answer.picture_height,
            image_width=answer.picture_width,
        )
        conversion += time.monotonic() - grounded
        message.durations = conversions.durations_message(
            answer.seconds,
            waiting=began - request.arrived,
            conversion=conversion,
            total=time.monotonic() - request.arrived,
        )
        self._publish_answer(message, answer, picture)
        self.get_logger().info(
            f"request {request.request_id}: {len(answer.phrases)} phrases in {message.durations.total:.2f} s"
            f" ({replaced} pictures skipped since the last)"
        )

    def _set_image(self, arrival: Arrival) -> tuple[np.ndarray, Header, float]:
        """Give the newest picture to the pipeline, unless it holds it already.

        Returns:
            Picture, its header, and the seconds of conversion.
        """
        began = time.monotonic()
        if self._encoded is not None and self._encoded[0] is arrival:
            _, picture, header = self._encoded
            self._check_age(arrival, header)
            return picture, header, time.monotonic() - began
        message = decode_image(arrival)
        self._check_age(arrival, message.header)
        try:
            picture = conversions.picture_from_message(
                message, parameters.value(self, "max_image_pixels"), parameters.value(self, "significant_bits")
            )
        except conversions.BadImageError as error:
            raise RefusedError(GroundedAnswerMsg.STATUS_BAD_IMAGE, one_line(error), message.header) from error
        conversion = time.monotonic() - began
        self._encoded = None
        self._pipeline.set_image(picture)
        self._encoded = (arrival, picture, message.header)
        return picture, message.header, conversion

    def _check_age(self, arrival: Arrival, header: Header) -> None:
        check_age(arrival, header, self.get_clock().now(), parameters.value(self, "max_image_age", float))

    # --- either thread ----------------------------------------------------------------------------------------------------

    def _publish_answer(self, message: GroundedAnswerMsg, answer: GroundedAnswer, picture: np.ndarray) -> None:
        self._answers.publish(message)
        try:  # the reply is out: what goes wrong from here on must not send a second one
            if message.mode == GroundedAnswerMsg.MODE_CHAT:
                self._texts.publish(String(data=answer.text))
            self._label_maps.publish(conversions.label_map(answer, message.header))
            if self._overlays.get_subscription_count() > 0:
                overlay = draw_overlay(picture, answer, command=message.command)
                self._overlays.publish(conversions.image_message(overlay, "rgb8", message.header))
        except Exception as error:
            self.get_logger().error(f"request {message.request_id}: no label mask or overlay: {one_line(error)}")

    def _refuse(self, request: Request, refusal: RefusedError) -> None:
        too_long = refusal.status == GroundedAnswerMsg.STATUS_COMMAND_TOO_LONG
        command = request.text[: parameters.value(self, "max_command_length")] if too_long else request.text
        message = GroundedAnswerMsg(
            header=refusal.header or Header(),
            request_id=request.request_id,
            mode=request.mode,
            command=command,
            status=refusal.status,
            reason=refusal.reason,
            durations=StageDurations(total=time.monotonic() - request.arrived),
        )
        try:
            self._answers.publish(message)
        except Exception as error:
            self.get_logger().error(f"request {request.request_id}: no reply: {one_line(error)}")
        line = f"request {request.request_id} refused: {refusal.reason}"
        if refusal.status == GroundedAnswerMsg.STATUS_MODEL_FAILURE:
            self.get_logger().error(line)
        else:  # rclpy allows one severity for each line of code
            self.get_logger().warning(line)


def _model_failure(error: Exception) -> RefusedError:
    return RefusedError(GroundedAnswerMsg.STATUS_MODEL_FAILURE, f"the model failed: {one_line(error)}")


def main(args: Sequence[str] | None = None, *, load: Callable[[GroundingConfig], Pipeline] = load_pipeline) -> int:
    """Run the node until SIGINT or SIGTERM.

    Returns:
        0; 1 if the model could not be loaded; 2 for a wrong parameter.
    """
    return run_node(lambda: GroundingNode(load=load), args)


if __name__ == "__main__":
    sys.exit(main())
