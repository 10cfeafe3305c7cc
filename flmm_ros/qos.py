"""Quality of service of every topic, its overrides, and warnings about other nodes with an incompatible one.

Users override it with parameters (``qos_overrides./image.subscription.reliability``), by the name of the topic before or after
remapping.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rcl_interfaces.msg import ParameterDescriptor
from rclpy.event_handler import PublisherEventCallbacks, SubscriptionEventCallbacks
from rclpy.expand_topic_name import expand_topic_name
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import (
    QoSDurabilityPolicy,
    QoSHistoryPolicy,
    QoSPolicyKind,
    QoSProfile,
    QoSReliabilityPolicy,
)
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription

from flmm_core.common.plain_text import one_line
from flmm_ros.parameter_names import overrides_of

COMMAND_DEPTH = 1000
"""Number of commands that the middleware queues while the node is busy, and of replies that it queues for a slow reader."""

_POLICIES = ("history", "depth", "reliability", "durability")
"""Policies that may be overridden."""


def camera() -> QoSProfile:
    """Subscriptions to camera images: best effort, the latest only."""
    return QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=1, reliability=QoSReliabilityPolicy.BEST_EFFORT)


def camera_output() -> QoSProfile:
    """Publishers of camera images: reliable, so that they match both reliable and best-effort readers."""
    return QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=1, reliability=QoSReliabilityPolicy.RELIABLE)


def commands() -> QoSProfile:
    """Commands and their replies: reliable, with a long queue."""
    return QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=COMMAND_DEPTH, reliability=QoSReliabilityPolicy.RELIABLE)


def action_services() -> dict[str, Any]:
    """Services of the action, with the queue of commands: with rclpy's own, of 10, goals of a burst would get no reply."""
    return {f"{name}_service_qos_profile": commands() for name in ("goal", "result", "cancel")}


def images() -> QoSProfile:
    """Result images (label map, overlay): reliable, with a short queue, because each may take megabytes."""
    return QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=5, reliability=QoSReliabilityPolicy.RELIABLE)


def diagnostics() -> QoSProfile:
    """As other publishers of /diagnostics."""
    return QoSProfile(history=QoSHistoryPolicy.KEEP_LAST, depth=10, reliability=QoSReliabilityPolicy.RELIABLE)


def latched() -> QoSProfile:
    """Late subscribers get the last message (transient local)."""
    return QoSProfile(
        history=QoSHistoryPolicy.KEEP_LAST,
        depth=1,
        reliability=QoSReliabilityPolicy.RELIABLE,
        durability=QoSDurabilityPolicy.TRANSIENT_LOCAL,
    )


def full_name(node: Node, topic: str) -> str:
    """The name of a topic after remapping; ``image/compressed`` follows the remapping of ``image``."""
    name = str(node.resolve_topic_name(topic))
    base, _, rest = topic.partition("/")
    if rest and base != "~" and name == _plain_name(node, topic):
        return f"{node.resolve_topic_name(base)}/{rest}"
    return name


def create_publisher(node: Node, kind: type, topic: str, profile: QoSProfile) -> Publisher[Any]:
    """Create a publisher whose quality of service users may override.

    Args:
        node: that publishes.
        kind: type of the messages.
        topic: its name before remapping.
        profile: the default quality of service.

    Raises:
        ValueError: an override has an unknown value.
    """
    name = full_name(node, topic)
    _override(node, topic, name, "publisher", profile)
    events = PublisherEventCallbacks(incompatible_qos=lambda _: _complain(node, name, profile, "publisher"))
    options = _overridable()
    return node.create_publisher(kind, name, profile, qos_overriding_options=options, event_callbacks=events)


def create_subscription(
    node: Node, kind: type, topic: str, callback: Callable[..., None], profile: QoSProfile
) -> Subscription[Any]:
    """Create a subscription to serialized messages whose quality of service users may override.

    Messages stay serialized, so that a malformed command can be refused, and because most images are never used.

    Args:
        node: that subscribes.
        kind: type of the messages.
        topic: its name before remapping.
        callback: called with the serialized message and its MessageInfo.
        profile: the default quality of service.

    Raises:
        ValueError: an override has an unknown value.
    """
    name = full_name(node, topic)
    _override(node, topic, name, "subscription", profile)
    events = SubscriptionEventCallbacks(incompatible_qos=lambda _: _complain(node, name, profile, "subscription"))
    options = _overridable()
    return node.create_subscription(
        kind, name, callback, profile, raw=True, qos_overriding_options=options, event_callbacks=events
    )


def unused_overrides(node: Node) -> list[str]:
    """Names of overrides that no publisher or subscription of the node uses."""
    given = (name for name in overrides_of(node) if name.startswith("qos_overrides."))
    return sorted(name for name in given if not node.has_parameter(name))


def _overridable() -> QoSOverridingOptions:
    return QoSOverridingOptions([QoSPolicyKind[name.upper()] for name in _POLICIES])


def _plain_name(node: Node, topic: str) -> str:
    return str(expand_topic_name(topic, node.get_name(), node.get_namespace()))


def _override(node: Node, topic: str, name: str, entity: str, profile: QoSProfile) -> None:
    """Apply overrides of a topic: those by its name before remapping, then those by its name after it."""
    given = overrides_of(node)
    plain = _plain_name(node, topic)
    for key in (plain, name):
        for policy in _POLICIES:
            parameter = f"qos_overrides.{key}.{entity}.{policy}"
            if parameter not in given:
                continue
            setattr(profile, policy, _value(parameter, policy, given[parameter].value))
            if key != name and not node.has_parameter(parameter):  # rclpy declares those of the topic's own name
                node.declare_parameter(parameter, given[parameter].value, ParameterDescriptor(read_only=True))


def _value(parameter: str, policy: str, value: object) -> Any:
    if policy == "depth":
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"{parameter}: expected a whole number >= 0, got {value!r}")
        return value
    kinds = {"history": QoSHistoryPolicy, "reliability": QoSReliabilityPolicy, "durability": QoSDurabilityPolicy}
    kind = kinds[policy]
    names = [entry.name.lower() for entry in kind if entry.name != "UNKNOWN"]
    if value not in names:
        raise ValueError(f"{parameter}: expected one of {', '.join(sorted(set(names)))}, got {value!r}")
    return kind[str(value).upper()]


def _complain(node: Node, topic: str, ours: QoSProfile, entity: str) -> None:
    """Log an incompatibility, with both sides' settings and the remedies."""
    try:
        node.get_logger().warning(incompatibility(node, topic, ours, entity))
    except Exception as error:
        node.get_logger().error(f"{topic}: incompatible quality of service ({one_line(error)})")


def incompatibility(node: Node, topic: str, ours: QoSProfile, entity: str) -> str:
    """A message that names the other endpoints of a topic with an incompatible quality of service, and the remedies.

    Args:
        node: has one endpoint of the topic.
        topic: full name.
        ours: quality of service of this endpoint.
        entity: kind of this endpoint: ``publisher`` or ``subscription``.
    """
    publishes = entity == "publisher"
    others = node.get_subscriptions_info_by_topic(topic) if publishes else node.get_publishers_info_by_topic(topic)
    faulty: set[str] = set()
    policies: set[tuple[str, tuple[str, str]]] = set()
    for other in others:
        differing = _mismatch(ours, other.qos_profile) if publishes else _mismatch(other.qos_profile, ours)
        if differing:
            unknown = other.node_name.startswith("_NODE_NAME")  # discovered just now
            name = "a new node" if unknown else f"{other.node_namespace.rstrip('/')}/{other.node_name}"
            faulty.add(f"{name} ({_settings(other.qos_profile)})")
            policies |= differing.items()
    lost = "gets nothing from this node" if publishes else "is not heard by this node"
    remedies = (f"qos_overrides.{topic}.{entity}.{name}:={offers if publishes else asks}" for name, (offers, asks) in policies)
    return (
        f"{topic}: {', '.join(sorted(faulty)) or 'somebody'} {lost}, which has {_settings(ours)}: change the other side,"
        f" or set {' and '.join(sorted(remedies))}"
    )


def _mismatch(offered: QoSProfile, asked: QoSProfile) -> dict[str, tuple[str, str]]:
    """Incompatible policies, each with a compatible value to offer and one to request.

    rclpy's own check fails on infinite deadlines.
    """
    found = {}
    if offered.reliability == QoSReliabilityPolicy.BEST_EFFORT and asked.reliability == QoSReliabilityPolicy.RELIABLE:
        found["reliability"] = ("reliable", "best_effort")
    if offered.durability == QoSDurabilityPolicy.VOLATILE and asked.durability == QoSDurabilityPolicy.TRANSIENT_LOCAL:
        found["durability"] = ("transient_local", "volatile")
    return found


def _settings(profile: QoSProfile) -> str:
    return f"{profile.reliability.name.lower()}, {profile.durability.name.lower()}"
