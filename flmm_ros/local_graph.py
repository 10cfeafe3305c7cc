"""The ROS graph of commands that start nodes of their own."""

from __future__ import annotations

import os
import random
import time

_DISCOVERY = 2.0
"""Seconds to look for other nodes; those of this machine are found within a fraction of it."""


def local_graph() -> dict[str, str]:
    """Environment variables of a graph that does not leave this machine.

    Its domain is that of ``ROS_DOMAIN_ID`` if that is set, otherwise a random one from 1 to 100.
    """
    return {
        "ROS_DOMAIN_ID": os.environ.get("ROS_DOMAIN_ID") or str(random.SystemRandom().randint(1, 100)),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "RMW_IMPLEMENTATION": "rmw_fastrtps_cpp",
    }


def require_free_domain(*names: str) -> None:
    """Refuse a ROS domain in which nodes have the names of those that are about to start: either could get what is sent.

    Args:
        names: full names.

    Raises:
        ValueError: names the nodes that are there.
    """
    import rclpy

    context = rclpy.Context()
    rclpy.init(context=context, args=[])
    node = rclpy.create_node(f"flmm_look_{os.getpid()}", context=context, enable_rosout=False, start_parameter_services=False)
    try:
        end = time.monotonic() + _DISCOVERY
        while not (found := _full_names(node.get_node_names_and_namespaces()) & set(names)) and time.monotonic() < end:
            time.sleep(0.05)
    finally:
        node.destroy_node()
        rclpy.try_shutdown(context=context)
    if found:
        raise ValueError(
            f"ROS_DOMAIN_ID: expected a domain without {', '.join(names)}, got {os.environ.get('ROS_DOMAIN_ID') or 0}, where"
            f" {', '.join(sorted(found))} runs already; end that, or set ROS_DOMAIN_ID to another number"
        )


def _full_names(nodes: list[tuple[str, str]]) -> set[str]:
    return {f"{namespace.rstrip('/')}/{name}" for name, namespace in nodes}
