"""Selects the images of a bag and their depth, grounds them, and writes what the node would publish."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rclpy.clock import ClockType
from rclpy.serialization import deserialize_message
from rclpy.time import Time
from sensor_msgs.msg import CompressedImage, Image

from flmm_core.serving.interface import Pipeline
from flmm_core.serving.requests import CameraImage, Mode, RefusedError, Reply, Status, refusing
from flmm_ros import conversions
from flmm_ros.bag.files import BagError, BagWriter, Recorded, read
from flmm_ros.commands import Command, Located, reply_message
from flmm_ros.depth_matcher import DepthMatcher, View, is_rectified
from flmm_ros.image_buffer import Source
from flmm_ros.msg import GroundedAnswer
from flmm_ros.outputs import makers

_IMAGES = {"sensor_msgs/msg/Image": Image, "sensor_msgs/msg/CompressedImage": CompressedImage}
_NOT_CAMERAS = ("depth", "disparity", "label", "mask", "overlay")
"""Parts of the names of image topics that do not belong to a camera."""
_MAX_WAITING = 30
"""Images that wait for depth; beyond it, the oldest is grounded without."""
ANSWER_TOPIC = "/grounding/answer"
"""Topic of the replies; the last message about each image."""
_NO_LIMIT = 2**31 - 1


@dataclass(frozen=True)
class Topics:
    """Topics of the images and, unless empty, of their depth and camera info."""

    image: str
    depth: str = ""
    camera_info: str = ""


def image_topic(path: Path, wanted: str, warn: Callable[[str], None]) -> tuple[str, int]:
    """Topic and number of the images that are grounded.

    Args:
        path: of the bag.
        wanted: a topic; empty for the only one that looks like a camera's.
        warn: called with the reason if the bag ends early.

    Raises:
        BagError: the bag has no such topic, or several.
    """
    counts: dict[str, int] = {}
    for recorded in read(path, warn):
        if recorded.kind in _IMAGES:
            counts[recorded.topic] = counts.get(recorded.topic, 0) + 1
    if wanted:
        if wanted not in counts:
            raise BagError(f"--image: expected one of {', '.join(sorted(counts)) or 'no topic at all'}, got {wanted}")
        return wanted, counts[wanted]
    cameras = sorted(topic for topic in counts if not any(part in topic for part in _NOT_CAMERAS))
    if len(cameras) != 1:
        raise BagError(f"{path}: expected one topic of images, got {', '.join(cameras) or 'none'}; choose one with --image")
    return cameras[0], counts[cameras[0]]


def images(path: Path, topics: Topics, every: int) -> Iterator[tuple[int, Recorded, DepthMatcher]]:
    """Every n-th image of a bag, with its number and the depth images around it.

    An image is yielded when the depth that follows it has been read, or does not come.
    """
    space, number = DepthMatcher(), -1
    waiting: list[tuple[int, Recorded, int]] = []
    """Number, image, and how many depth images came after it."""
    for recorded in read(path):
        if recorded.topic == topics.depth:
            space.put_depth(recorded.data, _IMAGES.get(recorded.kind, Image))
            waiting = [(n, image, seen + 1) for n, image, seen in waiting]
        elif recorded.topic == topics.camera_info:
            space.put_info(recorded.data)
        elif recorded.topic == topics.image:
            number += 1
            if number % every == 0:
                waiting.append((number, recorded, 0))
        while waiting and (not topics.depth or waiting[0][2] > 0 or len(waiting) > _MAX_WAITING):
            yield (*waiting.pop(0)[:2], space)
    for n, image, _ in waiting:
        yield n, image, space


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
    kind = _IMAGES[recorded.kind]
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
