"""Size of a fleet, with every default once. Imports no Ray."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class FleetSettings:
    """Size of a fleet, address to listen on, and limits of what it takes.

    Raises:
        ValueError: a value out of range.
    """

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
    command_deadline: float = 60.0
    """Seconds for an answer from when the model starts on it; a replica whose model hangs then is replaced. 0: none."""
    max_image_pixels: int = 16_777_216
    """Larger images are refused by their header, before they are decoded."""
    port: int = 8000
    host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        if not 0 <= self.gpus < math.inf or (self.gpus > 1 and self.gpus % 1):
            raise ValueError(f"gpus: expected a part of one GPU or a whole number of them, got {self.gpus:g}")
        if not 0 <= self.command_deadline < math.inf:
            raise ValueError(f"command_deadline: expected 0 or more seconds, got {self.command_deadline:g}")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port: expected 0 to 65535, got {self.port}")

    @property
    def largest(self) -> int:
        """Replicas at most, not less than at the start."""
        return max(self.replicas, self.most_replicas)

    @property
    def commands(self) -> int:
        """Commands that one replica may have, waiting and in work."""
        return self.waiting + self.batch
