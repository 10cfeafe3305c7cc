"""Settings of training: each with its default and meaning.

The options of the command line are declared from these dataclasses. The file must load fast, so it does not import PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, ClassVar


def option(description: str, *, minimum: int | None = None, earlier: bool = False) -> dict[str, Any]:
    """Metadata of a field that is also an option of the stage's command.

    Args:
        description: a phrase for ``--help``.
        minimum: least value; smaller ones are refused.
        earlier: whether the value is the path of an earlier stage's result.
    """
    return {"description": description, "minimum": minimum, "earlier": earlier}


@dataclass(frozen=True)
class Checked:
    """A dataclass that refuses numbers below the minimum of their field."""

    def __post_init__(self) -> None:
        for entry in fields(self):
            minimum, value = entry.metadata.get("minimum"), getattr(self, entry.name)
            if minimum is not None and value < minimum:
                raise ValueError(f"{entry.name}: expected at least {minimum}, got {value}")


@dataclass(frozen=True)
class LoopConfig(Checked):
    """Steps and learning rate of a stage. The rate warms up linearly and then falls to zero on a cosine, or linearly."""

    steps: int = field(metadata=option("steps of the optimiser", minimum=1))
    learning_rate: float = field(metadata=option("the highest"))
    weight_decay: float = field(default=0.01, metadata=option("decay of matrices; norms and biases have none"))
    beta2: float = field(default=0.999, metadata=option("decay of AdamW's second moment"))
    accumulate: int = field(default=1, metadata=option("passes whose gradients make one step", minimum=1))
    bf16: bool = field(default=False, metadata=option("compute in bfloat16 where autocast allows it; weights stay float32"))
    beta1: float = 0.9
    warmup: float = 0.03
    """Length of the warm-up as a share of the steps."""
    fall: float = 0.0
    """Share of the steps, at the end, over which the learning rate falls linearly after being constant. 0: a cosine."""
    clip: float = 1.0
    """Norm to which larger gradients are scaled down."""
    checkpoint_seconds: float = 180.0


@dataclass(frozen=True)
class StageSettings(Checked):
    """Settings of a stage beside those of its loop."""

    LOOP: ClassVar[LoopConfig]
    """Default loop of the stage."""


SEED = "of weights and batches"
"""Description of all seeds."""


@dataclass(frozen=True)
class HeadsSettings(StageSettings):
    """The grounding heads; defaults are the published recipe (F-LMM, section 4), for one image of each process in a pass."""

    LOOP: ClassVar[LoopConfig] = LoopConfig(steps=1, learning_rate=1e-4)
    """Its steps follow from ``epochs``."""

    data: tuple[str, ...] = field(
        default=("data/train",), metadata=option("data set to train on: FOLDER, FORMAT=FOLDER, or either with @SPLIT")
    )
    val: tuple[str, ...] = field(default=("data/val",), metadata=option("data set to measure on, of another split"))
    lmm: str = field(
        default="runs/lmm/lmm", metadata=option("the frozen LMM: a folder, a Hugging Face name or a registered model")
    )
    sam: str = field(
        default="runs/sam/sam", metadata=option("the SAM: a folder, a .pth file, a Hugging Face name or a registered model")
    )
    dtype: str = field(default="auto", metadata=option("number format of the LMM; auto: bfloat16 on cuda, float32 on the CPU"))
    image_tokens: int = field(
        default=0, metadata=option("most tokens of an image in the LMM; 0: those of the checkpoint's own processor", minimum=0)
    )
    epochs: float = field(default=8.0, metadata=option("passes over the data"))
    limit: int = field(default=0, metadata=option("most images of each data set, spread over it; 0: all", minimum=0))
    val_samples: int = field(default=100, metadata=option("held-out images to measure on, of each data set", minimum=1))
    measure_every: int = field(default=1000, metadata=option("steps between measurements", minimum=1))
    turns: int = field(default=4, metadata=option("most answers of an image that the LMM reads", minimum=1))
    variants: int = field(
        default=3,
        metadata=option("random choices of an image's answers and expressions, used in turn by epoch", minimum=1),
    )
    batch: int = field(default=1, metadata=option("images of each process in one pass", minimum=1))
    phrases: int = field(default=16, metadata=option("most phrases of an image in one pass", minimum=1))
    refined: int = field(default=16, metadata=option("most of them that SAM refines as well", minimum=1))
    base_channels: int = field(default=64, metadata=option("channels of the first stage of the U-Net", minimum=1))
    attention_heads: int = field(
        default=0, metadata=option("attention heads that the U-Net sees, those that point best at first; 0: all", minimum=0)
    )
    sink_quantile: float = field(
        default=1.0, metadata=option("attention above this quantile of its map is clipped to it, against sinks; 1: no clipping")
    )
    sam_rate: float = field(default=1.0, metadata=option("learning rate of SAM's parts, as a share of the others'"))
    cache: str = field(default="", metadata=option("folder to cache the outputs of LMM and SAM; empty: no cache"))
    cache_gigabytes: float = field(default=200.0, metadata=option("size limit of that folder"))
    seed: int = field(default=0, metadata=option(SEED, minimum=0))
