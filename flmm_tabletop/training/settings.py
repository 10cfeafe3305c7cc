"""Settings of the stages of flmm-tabletop: each with its default and meaning.

The options of the command line are declared from these dataclasses. The file must load fast, so it does not import PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from flmm_core.training.settings import SEED, LoopConfig, StageSettings, option


@dataclass(frozen=True)
class TabletopSettings(StageSettings):
    """Settings of all stages of flmm-tabletop."""

    data: Path = field(default=Path("data/train"), metadata=option("data set to train on, of `flmm scenes`"))
    val: Path = field(default=Path("data/val"), metadata=option("data set to measure on, of another split"))


@dataclass(frozen=True)
class TowerSettings(TabletopSettings):
    """Stage 1: the vision tower."""

    LOOP: ClassVar[LoopConfig] = LoopConfig(steps=5000, learning_rate=2e-3, weight_decay=0.05)

    batch: int = field(default=32, metadata=option("images of a step", minimum=1))
    vote_steps: int = field(
        default=1200, metadata=option("steps of the fit of the votes, once the cells are learnt", minimum=1)
    )
    vote_batch: int = 64
    """Images of a step of that fit."""
    seed: int = field(default=0, metadata=option(SEED, minimum=0))


@dataclass(frozen=True)
class LmmSettings(TabletopSettings):
    """Stage 2: the LMM."""

    LOOP: ClassVar[LoopConfig] = LoopConfig(
        steps=7000, learning_rate=2e-3, weight_decay=0.05, beta2=0.98, warmup=0.015, fall=0.5
    )

    tower: Path = field(default=Path("runs/tower/tower"), metadata=option("the trained vision tower", earlier=True))
    batch: int = field(default=8, metadata=option("images of a step", minimum=1))
    turns: tuple[tuple[int, int], ...] = ((8, 20), (6, 28), (2, 42), (1, 60))
    """Most turns of an image in one step, and most tokens of each: a turn is put into the shortest slot that fits."""
    matrix_rate: float = field(
        default=4e-3, metadata=option("highest learning rate of the decoder's matrices, which Muon trains")
    )
    embedding_rate: float = field(default=4e-3, metadata=option("highest learning rate of the embeddings, which do not decay"))
    looking: float = field(default=0.1, metadata=option("weight of the losses on where heads look"))
    seed: int = field(default=0, metadata=option(SEED, minimum=0))
    hidden_size: int = 192
    layers: int = 6
    heads: int = 6
    head_size: int = 32
    intermediate_size: int = 512
    vocabulary: int = 1024


@dataclass(frozen=True)
class SamSettings(TabletopSettings):
    """Stage 3: SAM."""

    LOOP: ClassVar[LoopConfig] = LoopConfig(steps=1000, learning_rate=1e-3)

    kind: str = field(default="sam", metadata=option("sam, sam2 or sam_hq"))
    batch: int = field(default=8, metadata=option("images of a step", minimum=1))
    objects: int = field(default=2, metadata=option("most masks of an image", minimum=1))
    grid: int = 16
    """Cells along the long side of the attention grid that prompts imitate."""
    seed: int = field(default=0, metadata=option(SEED, minimum=0))
