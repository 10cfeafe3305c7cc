"""`flmm train-lmm`: second stage of flmm-tabletop."""

from __future__ import annotations

import argparse
from pathlib import Path

from flmm_cli.training_options import SEED, Option, Stage, add_stage_parser, run_stage

STAGE = Stage(
    name="lmm",
    summary="train the LMM of flmm-tabletop (stage 2)",
    description="A tiny LLaVA learns to answer by next-token loss; no mask, box or coordinate reaches it. Result: OUT/lmm."
    " A run that stopped goes on from its checkpoint.",
    steps=6000,
    learning_rate=1.5e-3,
    weight_decay=0.05,
    beta2=0.98,
    options=(
        Option("tower", Path("runs/tower/tower"), "the trained vision tower"),
        Option("batch", 8, "pictures of a step"),
        SEED,
    ),
)


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    add_stage_parser(subparsers, STAGE)


def run(args: argparse.Namespace) -> int:
    """Train."""
    from flmm_tabletop.training.lmm import LmmSettings, train_lmm

    return run_stage(args, STAGE, LmmSettings, train_lmm)
