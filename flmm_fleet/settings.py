"""Size of a fleet, with every default once. Imports no Ray."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class FleetSettings:
    """Size of a fleet and address to listen on."""

    replicas: int = 1
    """At the start, and at least."""
    most_replicas: int = 1
    """Replicas at most: more than ``replicas`` are started while commands wait."""
    waiting: int = 8
    """Commands that may wait for each replica; more are refused as busy, and clients retry."""
    batch: int = 4
    """Most waiting questions that a replica's LMM answers in one batch; 1: one after the other."""
    gpus: float = 0.0
    """GPUs of each replica; with 0.5, two replicas share a GPU."""
    port: int = 8000
    host: str = "127.0.0.1"
