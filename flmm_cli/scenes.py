"""`flmm scenes`: renders table-top scenes with true masks, questions and answers."""

from __future__ import annotations

import argparse

from flmm_cli.shared.options import require_counts
from flmm_cli.shared.outputs import add_output, whole_folder


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "scenes",
        help="render a data set of simulated table-top scenes",
        description="Writes images, COCO masks (annotations.json) and questions with answers and the character ranges of the"
        " objects that they name (questions.json). Splits of one seed share no scene. A stopped run continues.",
    )
    add_output(
        parser,
        "--out",
        output={
            "folder": True,
            "entries": whole_folder,
            "own": lambda folder, _: (folder / "parts" / "settings.json").exists(),
        },
        required=True,
        help="folder of the data set",
    )
    parser.add_argument("--split", default="train", help="name of the split; every scene depends on it (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the data set (default: %(default)s)")
    parser.add_argument("--count", type=int, default=100, help="scenes (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="processes (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Render the scenes that the data set lacks."""
    require_counts(args, "count", "workers")
    if args.seed < 0:
        raise ValueError(f"--seed: expected at least 0, got {args.seed}")

    from flmm_sim.dataset_writer import write_dataset

    write_dataset(args.out, split=args.split, seed=args.seed, count=args.count, workers=args.workers)
    print(f"{args.count} scenes: {args.out}")
    return 0
