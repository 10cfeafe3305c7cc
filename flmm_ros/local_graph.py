"""A ROS graph of this machine alone, for commands that start nodes of their own."""

from __future__ import annotations

import os
import random


def local_graph() -> dict[str, str]:
    """Environment variables of a graph that does not leave this machine.

    Its domain is that of ``ROS_DOMAIN_ID`` if that is set, otherwise a random one from 1 to 100.
    """
    return {
        "ROS_DOMAIN_ID": os.environ.get("ROS_DOMAIN_ID") or str(random.SystemRandom().randint(1, 100)),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "RMW_IMPLEMENTATION": "rmw_fastrtps_cpp",
    }
