"""ROS messages to arrays and back: what a program needs that reads the node's answers or sends it images."""

from flmm_ros.conversions.answers import durations_by_stage, label_map, phrase_from_message
from flmm_ros.conversions.compressed import image_from_compressed
from flmm_ros.conversions.depth import depth_from_compressed, depth_from_message
from flmm_ros.conversions.geometry import location_from_message, location_message, pose_message, rotation_from_message
from flmm_ros.conversions.images import (
    SUPPORTED_ENCODINGS,
    BadImageError,
    image_from_message,
    image_message,
)

__all__ = [
    "SUPPORTED_ENCODINGS",
    "BadImageError",
    "depth_from_compressed",
    "depth_from_message",
    "durations_by_stage",
    "image_from_compressed",
    "image_from_message",
    "image_message",
    "label_map",
    "location_from_message",
    "location_message",
    "phrase_from_message",
    "pose_message",
    "rotation_from_message",
]
