"""Quality of service of every topic, stated once. Users override it with parameters (``qos_overrides./image...``)."""

from __future__ import annotations

from rclpy.qos import QoSHistoryPolicy, QoSProfile, QoSReliabilityPolicy
from rclpy.qos_overriding_options import QoSOverridingOptions

COMMAND_DEPTH = 1000
"""Commands that may wait in the middleware while the node loads its model, and replies a slow reader may lag behind."""


def camera() -> QoSProfile:
    """Camera images: sensor data, the latest only."""
    return QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT)


def camera_output() -> QoSProfile:
    """What a camera offers: reliable, so that it matches readers of either kind."""
    return QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=1, reliability=QoSReliabilityPolicy.RELIABLE)


def commands() -> QoSProfile:
    """Commands and their replies: none may be lost."""
    return QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=COMMAND_DEPTH, reliability=QoSReliabilityPolicy.RELIABLE)


def images() -> QoSProfile:
    """Result images (label map, overlay): reliable; each may take megabytes, so few are kept."""
    return QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=5, reliability=QoSReliabilityPolicy.RELIABLE)


def diagnostics() -> QoSProfile:
    """As every other publisher of /diagnostics has it."""
    return QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=10, reliability=QoSReliabilityPolicy.RELIABLE)


def overridable() -> QoSOverridingOptions:
    """Declare history, depth and reliability as read-only parameters of the topic."""
    return QoSOverridingOptions.with_default_policies()
