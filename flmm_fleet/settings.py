"""Size of a fleet: every default once. Loads at once: no Ray here."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FleetSettings:
    """Size of a fleet."""

    replicas: int = 1
    """At the beginning, and at least."""
    most_replicas: int = 1
    """As many are started while commands wait."""
    waiting: int = 8
    """Commands of each replica that may wait; more are refused as busy, and clients try again."""
    batch: int = 4
    """Most questions that a replica's LMM answers in one batch, if they wait; 1: one after the other."""
    gpus: float = 0.0
    """GPUs of each replica; a share lets several live on one."""
    port: int = 8000
    host: str = "127.0.0.1"
