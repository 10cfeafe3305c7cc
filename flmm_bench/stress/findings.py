"""What a stress test measured."""

from __future__ import annotations

from dataclasses import dataclass, field

from flmm_bench.stress.delivery_log import DeliveryLog


@dataclass
class NodeRun:
    """Memory and processor time of the node between one start and its end, sampled once a second."""

    memory: list[float] = field(default_factory=list)
    """Resident bytes."""
    cpu_seconds: float = 0.0
    seconds: float = 0.0


@dataclass
class Findings:
    """What a stress test measured."""

    log: DeliveryLog
    lateness: list[float]
    """Of the node's timer, ms, see :mod:`flmm_bench.stress.node`."""
    runs: list[NodeRun]
    malformed: int
    """Malformed messages that were sent."""
    cycles: int
    """Lifecycle cycles."""
    kills: int
    lost_in_kills: int
    """Commands that were pending when the node was killed."""
    unreachable: int
    """Restarts after which the node reported that it is ready but no message reached it; it was restarted again."""
    crashed_clients: int
    seconds: float
    """Of traffic, without the time in which the node started or changed its state."""
    exit_status: int
    """Of the node at the end."""
    errors: list[str]
    """Lines of the node's log that must not appear."""
