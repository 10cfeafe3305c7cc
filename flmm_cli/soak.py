"""`flmm soak`: a stress test of the node over real ROS processes, minutes or hours long."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path

from flmm_cli.shared.outputs import add_output
from flmm_cli.shared.records import write_json


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "soak",
        help="stress test the node: random traffic, faults, and exactly one reply for each command",
        description="Starts a simulated camera at 30 Hz and the node as separate processes. Sends commands, goals,"
        " cancellations, watch lists and malformed messages at random; cycles the node's lifecycle, kills and restarts it,"
        " lets clients crash and the camera drop out. Verifies exactly one reply for each command; exit status 1 if one got"
        " none or several.",
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="length of the test (default: %(default)g)")
    parser.add_argument("--seed", type=int, default=0, help="seed of all random choices (default: %(default)s)")
    add_output(parser, "--out", help="write the figures as JSON to this file")
    add_output(
        parser,
        "--logs",
        output={"folder": True, "entries": lambda args, folder: folder.glob("*.log")},
        default=Path("soak_output"),
        help="folder of the logs (default: %(default)s)",
    )


def run(args: argparse.Namespace) -> int:
    """Run the test, and print its figures."""
    if not args.minutes > 0:
        raise ValueError(f"--minutes: expected more than 0, got {args.minutes:g}")
    from flmm_ros.local_graph import local_graph, require_free_domain

    os.environ.update(local_graph())
    require_free_domain("/grounding", "/soak_camera")
    from tqdm import tqdm

    from flmm_bench.stress.report import figures, problems, table
    from flmm_bench.stress.run import soak

    with tqdm(total=1.0, unit="", bar_format="{l_bar}{bar}| {elapsed}<{remaining}") as bar:
        found = soak(args.minutes, args.logs, seed=args.seed, on_progress=lambda share: bar.update(share - bar.n))
    record = figures(found, shlex.join(["flmm", *args.arguments]))
    print(table(record))
    if args.out:
        write_json(args.out, record, args.command)
    found_problems = problems(record)
    for problem in found_problems:
        print(f"soak: {problem}")
    return 1 if found_problems else 0
