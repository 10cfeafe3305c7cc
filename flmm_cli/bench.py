"""`flmm bench`: what grounding costs on top of talking, in ratios measured side by side."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "bench",
        help="measure what grounding costs on top of talking",
        description="Runs the naive path, plain generation and this project's path in turn, on the shipped model and on random"
        " ones with layers of the shape of a 7B LLaVA; prints a table and writes it as Markdown, JSON and a chart.",
    )
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"), help="folder to write (default: %(default)s)")
    parser.add_argument("--name", default="cpu", help="name of the run, and of its files (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each measurement (default: %(default)s)")
    parser.add_argument(
        "--small", action="store_true", help="small random models in place of wide ones: shows the way, not the figures"
    )


def run(args: argparse.Namespace) -> int:
    """Measure, print and write."""
    from flmm_cli.counts import require_counts

    require_counts(args, "rounds")
    import flmm_tabletop
    from flmm_bench.report import table, write
    from flmm_bench.run import measure

    flmm_tabletop.register()
    rows, floors, rates = measure(rounds=args.rounds, small=args.small)
    print(table(rows))
    write(args.out, args.name, rows, floors, rates)
    print(f"bench: {args.out / args.name}.md, .json, .png")
    return 0
