"""`flmm train-tower`: first stage of flmm-tabletop."""

from __future__ import annotations

import argparse

from flmm_cli.training_options import SEED, Option, Stage, add_stage_parser, run_stage

STAGE = Stage(
    name="tower",
    summary="train the vision tower of flmm-tabletop (stage 1)",
    description="The tower learns the names of the things in a picture; where they are, it is never told. Result: OUT/tower."
    " A run that stopped goes on from its checkpoint.",
    steps=5000,
    learning_rate=2e-3,
    weight_decay=0.05,
    beta2=0.999,
    options=(
        Option("batch", 32, "pictures of a step"),
        SEED,
    ),
)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    add_stage_parser(subparsers, STAGE)


def run(args: argparse.Namespace) -> int:
    """Train."""
    from flmm_tabletop.training.tower import TowerSettings, train_tower

    return run_stage(args, STAGE, TowerSettings, train_tower)
