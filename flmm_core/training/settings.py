"""What training depends on: every default once, with its meaning.

The commands of the command line are declared from these dataclasses. So this file must load at once: no PyTorch here.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar


def option(description: str, *, minimum: int | None = None, earlier: bool = False) -> dict[str, Any]:
    """Metadata of a field that is also an option of the stage's command.

    Args:
        description: a phrase for ``--help``.
        minimum: least value; what is below is refused.
        earlier: whether the path is a result of an earlier stage.
    """
    return {"description": description, "minimum": minimum, "earlier": earlier}


@dataclass(frozen=True)
class Checked:
    """Refuses numbers below the minimum of their field."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            minimum, value = entry.metadata.get("minimum"), getattr(self, entry.name)
            if minimum is not None and value < minimum:
                raise ValueError(f"{entry.name}: expected at least {minimum}, got {value}")


@dataclass(frozen=True)
class LoopConfig(Checked):
    """How long and how fast; the learning rate warms up linearly and falls to zero, on a cosine unless told otherwise."""

    steps: int = field(metadata=option("steps of the optimiser", minimum=1))
    learning_rate: float = field(metadata=option("the highest"))
    weight_decay: float = field(default=0.01, metadata=option("decay of matrices; norms and biases have none"))
    beta2: float = field(default=0.999, metadata=option("decay of AdamW's second moment"))
    bf16: bool = field(default=False, metadata=option("compute in bfloat16 where autocast allows it; weights stay float32"))
    beta1: float = 0.9
    warmup: float = 0.03
    """Share of the steps."""
    fall: float = 0.0
    """Share of the steps, the last ones, over which the learning rate falls linearly; up to them it stays. 0: a cosine."""
    clip: float = 1.0
    """Largest norm of the gradient."""
    checkpoint_seconds: float = 180.0


@dataclass(frozen=True)
class StageSettings(Checked):
    """What every stage depends on beside its loop."""

    LOOP: ClassVar[LoopConfig]
    """The stage's loop, unless told otherwise."""

    data: Path = field(default=Path("data/train"), metadata=option("data set to train on, of `flmm scenes`"))
    val: Path = field(default=Path("data/val"), metadata=option("data set to measure on, of another split"))


SEED = "of weights and batches"
"""Description of every seed."""


@dataclass(frozen=True)
class HeadsSettings(StageSettings):
    """Stage 4: the grounding heads."""

    LOOP: ClassVar[LoopConfig] = LoopConfig(steps=1500, learning_rate=1e-3)

    lmm: str = field(
        default="runs/lmm/lmm", metadata=option("the frozen LMM: a folder, a Hugging Face name or a registered model")
    )
    sam: str = field(
        default="runs/sam/sam", metadata=option("the SAM: a folder, a .pth file, a Hugging Face name or a registered model")
    )
    dtype: str = field(default="auto", metadata=option("number format of the LMM; auto: bfloat16 on cuda, float32 on the CPU"))
    samples: int = field(default=2400, metadata=option("images of the data set whose answers the LMM reads", minimum=1))
    val_samples: int = field(default=30, metadata=option("held-out images to measure on", minimum=1))
    turns: int = field(default=13, metadata=option("answers of each image", minimum=1))
    batch: int = field(default=8, metadata=option("images of a step", minimum=1))
    phrases: int = field(default=3, metadata=option("most phrases of an image in one step", minimum=1))
    refined: int = field(default=1, metadata=option("most of them that SAM refines, too", minimum=1))
    base_channels: int = field(default=32, metadata=option("channels of the first stage of the U-Net", minimum=1))
    seed: int = field(default=0, metadata=option(SEED, minimum=0))
