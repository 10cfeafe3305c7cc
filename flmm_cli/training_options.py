"""What the commands that train flmm-tabletop have in common: options, and how they become a stage's settings."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flmm_core.config import GroundingConfig


@dataclass(frozen=True)
class Option:
    """An entry of the stage's settings that is an option of its command."""

    name: str
    default: int | Path
    help: str


@dataclass(frozen=True)
class Stage:
    """One of the commands."""

    name: str
    summary: str
    description: str
    steps: int
    learning_rate: float
    weight_decay: float
    beta2: float
    """Decay of AdamW's second moment."""
    options: tuple[Option, ...]

    @property
    def command(self) -> str:
        """As it is typed."""
        return f"train-{self.name}"


def add_stage_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser], stage: Stage) -> None:
    """Declare the command of a stage."""
    parser = subparsers.add_parser(stage.command, help=stage.summary, description=stage.description)
    shown = "(default: %(default)s)"
    data = (
        Option("data", Path("data/train"), "data set to train on, of `flmm scenes`"),
        Option("val", Path("data/val"), "data set to measure on, of another split"),
    )
    for option in (*data, *stage.options):
        name, kind = "--" + option.name.replace("_", "-"), int if isinstance(option.default, int) else Path
        parser.add_argument(name, type=kind, default=option.default, help=f"{option.help} {shown}")
    parser.add_argument(
        "--out", type=Path, default=Path("runs") / stage.name, help=f"folder of results, log and checkpoint {shown}"
    )
    parser.add_argument("--steps", type=int, default=stage.steps, help=shown[1:-1])
    parser.add_argument("--learning-rate", type=float, default=stage.learning_rate, help=f"the highest {shown}")
    parser.add_argument("--weight-decay", type=float, default=stage.weight_decay, help=shown[1:-1])
    parser.add_argument("--beta2", type=float, default=stage.beta2, help=f"decay of AdamW's second moment {shown}")
    parser.add_argument(
        "--bf16", action=argparse.BooleanOptionalAction, default=True, help=f"compute in bfloat16 where that is safe {shown}"
    )
    parser.add_argument("--device", default=GroundingConfig.device, help=f"auto, cpu, cuda, cuda:1, ... {shown}")


def run_stage(
    args: argparse.Namespace, stage: Stage, settings: Callable[..., Any], train: Callable[[Path, Any, Any, Any], None]
) -> int:
    """Train.

    Args:
        args: of a parser of :func:`add_stage_parser`.
        stage: the same.
        settings: the stage's dataclass.
        train: the stage's function.
    """
    import flmm_tabletop  # noqa: F401  makes its vision tower and its SAM known
    from flmm_core.pipeline import resolve_device
    from flmm_core.training.loop import LoopConfig

    for option in stage.options:
        value = getattr(args, option.name)
        if isinstance(value, int) and value < (0 if option.name == "seed" else 1):
            raise ValueError(f"--{option.name.replace('_', '-')}: expected a positive number, got {value}")
        if isinstance(value, Path) and not value.exists():
            raise ValueError(f"--{option.name}: expected the result of an earlier stage at {value}, got nothing there")
    device, _ = resolve_device(GroundingConfig(device=args.device))
    loop = LoopConfig(
        steps=args.steps,
        learning_rate=args.learning_rate,
        weight_decay=args.weight_decay,
        betas=(LoopConfig.betas[0], args.beta2),
        bf16=args.bf16,
    )
    chosen = {option.name: getattr(args, option.name) for option in stage.options}
    train(args.out, settings(data=args.data, val=args.val, **chosen), loop, device)
    print(f"{stage.command}: {args.out}")
    return 0


SEED = Option("seed", 0, "of weights and batches")
