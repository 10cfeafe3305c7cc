"""How a node that may be killed and started again reaches others on its machine. Imports no ROS: launch files use it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_RANGE, _PROFILES, _TRANSPORTS = "ROS_AUTOMATIC_DISCOVERY_RANGE", "FASTDDS_DEFAULT_PROFILES_FILE", "FASTDDS_BUILTIN_TRANSPORTS"
_LOOPBACK = Path(__file__).with_name("loopback.xml")


def without_shared_memory(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables with which a process uses Fast DDS over UDP alone.

    Fast DDS moves messages within a machine through shared memory, a segment for each port that a process listens at. When a
    process is killed, its peers may go on writing to the segment that it left, while the process that takes its place, and with
    that its port, reads from a new one: nothing reaches it, however often it is asked. Peers use shared memory only for
    processes that offer it, so that it is enough if a node that may be killed does not.

    Args:
        environment: that of the process. With the discovery range LOCALHOST the middleware takes transports from nowhere; the
            process then gets a profile with the same bounds: this machine's loopback and no more.

    Returns:
        What to add to ``environment``; empty for another middleware, and where its user has chosen transports or profiles.
    """
    fast_dds = environment.get("RMW_IMPLEMENTATION", "rmw_fastrtps_cpp").startswith("rmw_fastrtps")
    if not fast_dds or environment.get(_PROFILES) or environment.get(_TRANSPORTS):
        return {}
    if environment.get(_RANGE) == "LOCALHOST":
        return {_RANGE: "SYSTEM_DEFAULT", _PROFILES: str(_LOOPBACK)}
    return {_TRANSPORTS: "UDPv4"}
