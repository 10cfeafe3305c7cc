"""`flmm train-sam`: third stage of flmm-tabletop."""

from __future__ import annotations

import argparse

from flmm_cli.training_options import SEED, Option, Stage, add_stage_parser, run_stage

STAGE = Stage(
    name="sam",
    summary="train the SAM of flmm-tabletop (stage 3)",
    description="A small SAM learns to sharpen masks like those of a mask head. Result: OUT/sam."
    " A run that stopped goes on from its checkpoint.",
    steps=1000,
    learning_rate=1e-3,
    weight_decay=0.01,
    beta2=0.999,
    options=(
        Option("batch", 8, "pictures of a step"),
        Option("objects", 2, "most masks of a picture"),
        SEED,
    ),
)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    add_stage_parser(subparsers, STAGE)


def run(args: argparse.Namespace) -> int:
    """Train."""
    from flmm_tabletop.training.sam import SamSettings, train_sam

    return run_stage(args, STAGE, SamSettings, train_sam)
