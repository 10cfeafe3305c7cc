"""What the stages of flmm-tabletop depend on: every default once, with its meaning.

The commands of the command line are declared from these dataclasses. So this file must load at once: no PyTorch here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from flmm_core.training.settings import SEED, LoopConfig, StageSettings, option


@dataclass(frozen=True)
class TowerSettings(StageSettings):
    """Stage 1: the vision tower."""

    LOOP: ClassVar[LoopConfig] = LoopConfig(steps=5000, learning_rate=2e-3, weight_decay=0.05)

    batch: int = field(default=32, metadata=option("pictures of a step", minimum=1))
    seed: int = field(default=0, metadata=option(SEED, minimum=0))


@dataclass(frozen=True)
class LmmSettings(StageSettings):
    """Stage 2: the LMM."""

    LOOP: ClassVar[LoopConfig] = LoopConfig(steps=6000, learning_rate=1.5e-3, weight_decay=0.05, beta2=0.98)

    tower: Path = field(default=Path("runs/tower/tower"), metadata=option("the trained vision tower", earlier=True))
    batch: int = field(default=8, metadata=option("pictures of a step", minimum=1))
    short_turns: int = 12
    """Turns of at most ``short_length`` tokens for each picture."""
    short_length: int = 24
    long_turns: int = 1
    seed: int = field(default=0, metadata=option(SEED, minimum=0))
    hidden_size: int = 224
    layers: int = 7
    heads: int = 7
    head_size: int = 32
    intermediate_size: int = 512
    vocabulary: int = 1024


@dataclass(frozen=True)
class SamSettings(StageSettings):
    """Stage 3: SAM."""

    LOOP: ClassVar[LoopConfig] = LoopConfig(steps=1000, learning_rate=1e-3)

    batch: int = field(default=8, metadata=option("pictures of a step", minimum=1))
    objects: int = field(default=2, metadata=option("most masks of a picture", minimum=1))
    grid: int = 16
    """Cells along the long side of the attention grid that prompts imitate."""
    seed: int = field(default=0, metadata=option(SEED, minimum=0))
