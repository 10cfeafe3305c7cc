"""`flmm train-heads`: last stage of flmm-tabletop."""

from __future__ import annotations

import argparse
from pathlib import Path

from flmm_cli.training_options import SEED, Option, Stage, add_stage_parser, run_stage

STAGE = Stage(
    name="heads",
    summary="train grounding heads on a frozen LMM (stage 4)",
    description="U-Net, text projection, layer weights, SAM decoder and keyword selector learn on the frozen LMM."
    " Result: OUT/heads. A run that stopped goes on from its checkpoint.",
    steps=1500,
    learning_rate=1e-3,
    weight_decay=0.01,
    beta2=0.999,
    options=(
        Option("lmm", Path("runs/lmm/lmm"), "the frozen LMM"),
        Option("sam", Path("runs/sam/sam"), "the trained SAM"),
        Option("pictures", 4000, "pictures whose answers the LMM reads"),
        Option("turns", 6, "answers of each picture"),
        Option("batch", 8, "pictures of a step"),
        Option("phrases", 3, "most phrases of a picture in one step"),
        Option("base_channels", 32, "channels of the first stage of the U-Net"),
        SEED,
    ),
)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    add_stage_parser(subparsers, STAGE)


def run(args: argparse.Namespace) -> int:
    """Train."""
    from flmm_core.training.heads import HeadsSettings, train_heads

    return run_stage(args, STAGE, HeadsSettings, train_heads)
