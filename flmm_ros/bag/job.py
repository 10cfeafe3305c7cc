"""Grounds the images of one bag into another; an interrupted job continues where it stopped."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flmm_core.common.plain_text import in_utf8
from flmm_core.serving.requests import Mode, Status
from flmm_core.serving.server import Pipeline
from flmm_ros.bag.files import BagWriter, Recorded, metadata, read
from flmm_ros.bag.grounding import ANSWER_TOPIC, depth_finder, ground, write_reply
from flmm_ros.bag.recording import Entry, Recording, Topics
from flmm_ros.commands import Command

_METADATA = "flmm bag"
"""Name of the metadata that describe the job in the bag that it writes."""


@dataclass(frozen=True)
class BagJob:
    """One command about images of a bag."""

    bag: str
    """Name of the bag that is read."""
    recording: Recording
    """What it holds."""
    out: Path
    """MCAP file to write; until it is complete, its name ends with ``.partial``, and while the results of an interrupted run
    are copied, with ``.resumed``."""
    topics: Topics
    mode: Mode
    text: str
    """The question, or the phrase."""
    every: int
    """Every n-th image is grounded."""
    depth_tolerance: float
    """Most seconds between the stamps of an image and its depth."""
    model: Mapping[str, object]
    """The configuration of grounding."""

    def images(self) -> Sequence[Entry]:
        """The images that are grounded, in the order in which they were recorded."""
        return self.recording.entries(self.topics.image)[:: self.every]

    def metadata(self) -> dict[str, str]:
        """What is written into the bag; only a bag of equal metadata is continued."""
        words = {Mode.CHAT: "command", Mode.REFER: "phrase"}
        return {
            "written_by": _METADATA,
            "bag": in_utf8(self.bag),
            "bytes": str(self.recording.size),
            **{name: self.text if mode == self.mode else "" for mode, name in words.items()},
            "every": str(self.every),
            "image": self.topics.image,
            "depth": self.topics.depth,
            "camera_info": self.topics.camera_info,
            "depth_tolerance": str(self.depth_tolerance),
            "model": str(dict(self.model)),
        }


@dataclass(frozen=True)
class JobResult:
    """Images of a finished job."""

    answered: int
    """Answered by this run."""
    resumed: int
    """Finished by an earlier run that was interrupted."""


def run_job(
    pipeline: Pipeline,
    job: BagJob,
    *,
    on_images: Callable[[int], None] = lambda count: None,
    on_refusal: Callable[[int, str], None] = lambda number, reason: None,
) -> JobResult:
    """Ground the images of a bag and write what the node would publish about them.

    Args:
        pipeline: answers.
        job: what to ground; its folder is created.
        on_images: called with the number of images that are finished since the last call.
        on_refusal: called with the number of an image, counted from 1, and the reason why it has no answer.

    Raises:
        BagError: the bag cannot be read any more.
    """
    made = job.metadata()
    partial = job.out.with_name(job.out.name + ".partial")
    copied = job.out.with_name(job.out.name + ".resumed")
    job.out.parent.mkdir(parents=True, exist_ok=True)
    depth_of = depth_finder(job.recording, job.topics)
    answered = resumed = 0
    with BagWriter(copied, name=_METADATA, made=made) as writer:
        for messages in finished_images(partial, made):
            for message in messages:
                writer.copy(message)
            resumed += 1
        on_images(resumed)
        copied.replace(partial)  # only now: another interruption meanwhile must not cost the earlier results
        for number, entry in enumerate(job.images()[resumed:], start=resumed + 1):
            recorded = Recorded(job.topics.image, entry.kind, job.recording.data(entry), entry.log_time)
            command = Command(number, job.mode, job.text)
            message, reply, located = ground(pipeline, recorded, depth_of(entry), command, job.depth_tolerance)
            write_reply(writer, message, reply, located, recorded.log_time)
            if reply.status == Status.ANSWERED:
                answered += 1
            else:
                on_refusal(number, reply.reason)
            on_images(1)
    partial.replace(job.out)
    return JobResult(answered, resumed)


def finished_images(partial: Path, made: Mapping[str, str]) -> Iterator[list[Recorded]]:
    """The messages about each image that an interrupted run of the same job finished."""
    if metadata(partial, _METADATA) != made:
        return
    messages: list[Recorded] = []
    for recorded in read(partial):
        messages.append(recorded)
        if recorded.topic == ANSWER_TOPIC:  # the last message about an image
            yield messages
            messages = []
