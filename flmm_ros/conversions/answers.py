"""Answers as messages, and back: phrases with their masks, label maps, durations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from sensor_msgs.msg import Image, RegionOfInterest
from std_msgs.msg import Header

from flmm_ros.conversions.images import image_message
from flmm_ros.msg import GroundedPhrase as GroundedPhraseMsg
from flmm_ros.msg import Location as LocationMsg
from flmm_ros.msg import StageDurations

if TYPE_CHECKING:  # PyTorch takes seconds to import, and programs that read poses and images alone need none of it
    from flmm_core.types import GroundedAnswer, GroundedPhrase, StageSeconds

UNLABELLED_8 = 255
UNLABELLED_16 = 65535
"""Values of pixels without a label in mono8 and mono16 label maps."""


def phrase_message(phrase: GroundedPhrase, label: int, header: Header, location: LocationMsg) -> GroundedPhraseMsg:
    """Convert a phrase of an answer to a message.

    Args:
        phrase: with its mask ``[H, W]``.
        label: in the label map; phrases count up from 1.
        header: of the image.
        location: of the object, or the reason why it is unknown.
    """
    x0, y0, x1, y1 = (int(edge) for edge in phrase.box)
    crop = np.where(phrase.mask[y0:y1, x0:x1], 255, 0).astype(np.uint8)
    return GroundedPhraseMsg(
        text=phrase.text,
        start=phrase.start,
        end=phrase.end,
        score=float(phrase.score),
        presence=float(phrase.presence),
        absent=phrase.absent,
        label=label,
        roi=RegionOfInterest(x_offset=x0, y_offset=y0, width=x1 - x0, height=y1 - y0),
        mask=image_message(crop, "mono8", header),
        location=location,
    )


def phrase_from_message(message: GroundedPhraseMsg, height: int, width: int) -> GroundedPhrase:
    """Convert a message back to a phrase whose mask has the full size, ``[height, width]``."""
    import torch

    from flmm_core.types import GroundedPhrase

    roi = message.roi
    box = (roi.x_offset, roi.y_offset, roi.x_offset + roi.width, roi.y_offset + roi.height)
    mask = np.zeros((height, width), bool)
    crop = np.frombuffer(message.mask.data, np.uint8).reshape(roi.height, roi.width)
    mask[box[1] : box[3], box[0] : box[2]] = crop > 0
    return GroundedPhrase(
        message.text,
        message.start,
        message.end,
        torch.from_numpy(mask),
        box,
        message.score,
        message.presence,
        message.absent,
    )


def label_map(answer: GroundedAnswer, header: Header) -> Image:
    """All masks in one image: mono8, or mono16 for more than 254 phrases; where masks overlap, the smaller one is on top."""
    many = len(answer.phrases) >= UNLABELLED_8
    dtype, unlabelled = (np.uint16, UNLABELLED_16) if many else (np.uint8, UNLABELLED_8)
    labels = np.full((answer.image_height, answer.image_width), unlabelled, dtype)
    by_size = sorted(enumerate(answer.phrases, start=1), key=lambda entry: -int(entry[1].mask.sum()))
    for label, phrase in by_size:
        labels[phrase.mask] = label
    return image_message(labels, "mono16" if many else "mono8", header)


def durations_by_stage(durations: StageDurations) -> dict[str, float]:
    """Convert a message to seconds by stage, ``total`` among them."""
    return {stage: float(getattr(durations, stage)) for stage in StageDurations.get_fields_and_field_types()}


def durations_message(seconds: StageSeconds, *, waiting: float, conversion: float, total: float) -> StageDurations:
    """Convert stage durations to a message; all are in seconds."""
    return StageDurations(
        waiting=waiting,
        conversion=conversion,
        image=seconds.image,
        lmm=seconds.lmm,
        keywords=seconds.keywords,
        mask_head=seconds.mask_head,
        refiner=seconds.refiner,
        total=total,
    )
