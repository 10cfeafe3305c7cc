"""Grounds one image of a recording with its depth, and writes what the node would publish about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rclpy.clock import ClockType
from rclpy.serialization import deserialize_message
from rclpy.time import Time
from sensor_msgs.msg import CompressedImage, Image

from flmm_core.serving.interface import Pipeline
from flmm_core.serving.requests import CameraImage, Mode, RefusedError, Reply, Status, refusing
from flmm_ros import conversions
from flmm_ros.bag.files import BagWriter, Recorded
from flmm_ros.bag.recording import COMPRESSED_IMAGE, IMAGE, Entry, Nearest, Recording, Topics
from flmm_ros.commands import Command, Located, reply_message
from flmm_ros.depth_matcher import DepthMatcher, View, is_rectified
from flmm_ros.image_buffer import Source
from flmm_ros.msg import GroundedAnswer
from flmm_ros.outputs import makers

_KINDS = {IMAGE: Image, COMPRESSED_IMAGE: CompressedImage}
ANSWER_TOPIC = "/grounding/answer"
"""Topic of the replies; the last message about each image."""
_NO_LIMIT = 2**31 - 1


def depth_finder(recording: Recording, topics: Topics) -> Callable[[Entry], DepthMatcher | None]:
    """A function that gives the depth and the camera info nearest to an image; None if no depth is used."""
    depths, infos = (Nearest(recording.entries(topic)) for topic in (topics.depth, topics.camera_info))

    def found(image: Entry) -> DepthMatcher:
        space = DepthMatcher()
        for depth in depths.around(image):
            space.put_depth(recording.data(depth), _KINDS[depth.kind])
        if (info := infos.nearest(image)) is not None:
            space.put_info(recording.data(info))
        return space

    return found if topics.depth else lambda image: None


def ground(
    pipeline: Pipeline, recorded: Recorded, space: DepthMatcher | None, command: Command, tolerance: float
) -> tuple[GroundedAnswer, Reply, list[Located]]:
    """The reply about one image, as the node would send it; the age of the image is that at its recording.

    Args:
        pipeline: answers.
        recorded: message of the image.
        space: depth around it; None if no depth is used.
        command: what to answer.
        tolerance: most seconds between the stamps of an image and its depth.

    Returns:
        The message, the reply that it was made from, and the locations of the phrases.
    """
    try:
        with refusing():
            reply = _answer(pipeline, recorded, space, command, tolerance)
    except RefusedError as refusal:
        reply = Reply(refusal.status, refusal.reason, source=refusal.source)
    now = Time(nanoseconds=max(0, recorded.log_time), clock_type=ClockType.ROS_TIME)
    message, located = reply_message(command, reply, now, max_text=len(command.text))
    return message, reply, located


def _answer(pipeline: Pipeline, recorded: Recorded, space: DepthMatcher | None, command: Command, tolerance: float) -> Reply:
    kind = _KINDS[recorded.kind]
    try:
        message = deserialize_message(recorded.data, kind)
    except Exception as error:
        raise RefusedError(Status.BAD_IMAGE, "the image message is malformed") from error
    read_image = conversions.image_from_message if kind is Image else conversions.image_from_compressed
    try:
        pixels = read_image(message, _NO_LIMIT)
    except conversions.BadImageError as error:
        raise RefusedError(Status.BAD_IMAGE, str(error), Source(message.header)) from error
    view = View(reason="no depth topic was given")
    if space is not None:
        size, rectified = pixels.shape[:2], is_rectified(recorded.topic)
        view = space.view(message.header, *size, tolerance=tolerance, max_pixels=_NO_LIMIT, rectified=rectified)
    image = pipeline.encode(pixels)
    answer = pipeline.refer(image, [command.text]) if command.mode == Mode.REFER else pipeline.chat(image, command.text)
    source = Source(message.header, view)
    return Reply(Status.ANSWERED, answer=answer, image=CameraImage(pixels, source), source=source)


def write_reply(writer: BagWriter, message: GroundedAnswer, reply: Reply, located: Sequence[Located], log_time: int) -> None:
    """Write what the node would publish about an image, on the node's topics; the reply marks the end of each image."""
    if reply.answer is not None:
        for name, make in makers(message, reply, located).items():
            writer.write(f"/grounding/{name}", make(), log_time)
    writer.write(ANSWER_TOPIC, message, log_time)
