"""Answers as vision_msgs, for nodes that use standard messages. The wheels of ROS 2 lack that package.

``id`` of a detection stays empty: it means the same object in several messages, and an answer knows nothing of earlier ones.
"""

from __future__ import annotations

import importlib.util

from flmm_ros.commands import located_header
from flmm_ros.msg import GroundedAnswer, GroundedPhrase


def available() -> bool:
    """Whether vision_msgs is installed."""
    return importlib.util.find_spec("vision_msgs") is not None


if available():
    from vision_msgs.msg import (
        BoundingBox2D,
        BoundingBox3D,
        Detection2D,
        Detection2DArray,
        Detection3D,
        Detection3DArray,
        LabelInfo,
        ObjectHypothesisWithPose,
        VisionClass,
    )


def detections_2d(answer: GroundedAnswer) -> Detection2DArray:
    """Phrases with a mask. The class id is the text, the score the product of mask score and presence, the box is in pixels."""
    found = Detection2DArray(header=answer.header)
    for phrase in answer.phrases:
        if not phrase.roi.width:
            continue
        box = BoundingBox2D(size_x=float(phrase.roi.width), size_y=float(phrase.roi.height))
        box.center.position.x = phrase.roi.x_offset + phrase.roi.width / 2
        box.center.position.y = phrase.roi.y_offset + phrase.roi.height / 2
        found.detections.append(Detection2D(header=answer.header, results=[_hypothesis(phrase)], bbox=box))
    return found


def detections_3d(answer: GroundedAnswer) -> Detection3DArray:
    """Phrases with a location, as oriented boxes in the frame of the locations."""
    found = Detection3DArray(header=located_header(answer))
    for phrase in answer.phrases:
        if not phrase.location.valid:
            continue
        hypothesis = _hypothesis(phrase)
        hypothesis.pose.pose.position = phrase.location.centroid
        box = BoundingBox3D(center=phrase.location.box, size=phrase.location.box_size)
        found.detections.append(Detection3D(header=found.header, results=[hypothesis], bbox=box))
    return found


def label_info(answer: GroundedAnswer) -> LabelInfo:
    """The phrase of each value of the label map."""
    classes = [VisionClass(class_id=phrase.label, class_name=phrase.text) for phrase in answer.phrases]
    return LabelInfo(header=answer.header, class_map=classes)


def _hypothesis(phrase: GroundedPhrase) -> ObjectHypothesisWithPose:
    hypothesis = ObjectHypothesisWithPose()
    hypothesis.hypothesis.class_id = phrase.text
    hypothesis.hypothesis.score = phrase.score * phrase.presence
    return hypothesis
