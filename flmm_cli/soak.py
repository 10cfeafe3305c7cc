"""`flmm soak`: a stress test of the node, minutes or hours long, over real ROS processes."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "soak",
        help="stress the node: traffic of every kind, faults, and the books of what became of it",
        description="Starts a simulated camera at 30 Hz and the node as processes of their own. Sends commands, goals, cancels,"
        " watch lists and malformed messages at random; cycles the node's states, kills it and starts it again, lets clients"
        " die and the camera drop out. Writes figures; exit status 1 if a command was lost or answered twice.",
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="length (default: %(default)g)")
    parser.add_argument("--seed", type=int, default=0, help="of what is left to chance (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write the figures as JSON to this file")
    parser.add_argument("--logs", type=Path, default=Path("soak_output"), help="folder of the logs (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Stress, and print what was found."""
    if not args.minutes > 0:
        raise ValueError(f"--minutes: expected more than 0, got {args.minutes:g}")
    from flmm_demo.demo_run import demo_environment

    os.environ.update(demo_environment())
    from tqdm import tqdm

    from flmm_bench.stress.report import figures, fine, table
    from flmm_bench.stress.run import soak
    from flmm_cli.json_files import write_json

    with tqdm(total=1.0, unit="", bar_format="{l_bar}{bar}| {elapsed}<{remaining}") as bar:
        found = soak(args.minutes, args.logs, seed=args.seed, on_progress=lambda share: bar.update(share - bar.n))
    record = figures(found, shlex.join(["flmm", *args.arguments]))
    print(table(record))
    if args.out:
        write_json(args.out, record)
    problems = fine(record)
    for problem in problems:
        print(f"soak: {problem}")
    return 1 if problems else 0
