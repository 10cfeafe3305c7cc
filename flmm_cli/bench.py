"""`flmm bench`: the cost of grounding on top of plain generation, as ratios measured side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

from flmm_cli.shared.options import require_counts
from flmm_cli.shared.outputs import add_output

ENDS = (".md", ".json", ".png")
"""Of the names of the files that are written."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "bench",
        help="measure the cost of grounding on top of plain generation",
        description="Runs the naive path, plain generation and this project's path in turn, on the shipped model and on models"
        " with random weights whose layers have the shape of a 7B LLaVA's, or on the model that --lmm, --heads and --sam name;"
        " prints a table and writes it as Markdown, JSON and a chart.",
    )
    parser.add_argument("--lmm", help="measure only this LMM: a folder or a Hugging Face name")
    parser.add_argument("--heads", help="its heads")
    parser.add_argument("--sam", help="its SAM")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where to compute (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", help="number format of --lmm (default: %(default)s)")
    add_output(
        parser,
        "--out",
        output={"folder": True, "entries": lambda args, folder: [folder / f"{_name(args)}{end}" for end in ENDS]},
        default=Path("docs/benchmarks"),
        help="folder to write (default: %(default)s)",
    )
    parser.add_argument("--name", help="name of the run, and of its files (default: the device)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each measurement (default: %(default)s)")
    parser.add_argument(
        "--small", action="store_true", help="small random models: tries the benchmark, but its figures mean nothing"
    )


def run(args: argparse.Namespace) -> int:
    """Measure, print and write."""
    require_counts(args, "rounds")
    parts = (args.lmm, args.heads, args.sam)
    if any(parts) and not all(parts):
        raise ValueError("bench: expected --lmm, --heads and --sam together, or none of them")
    import torch

    from flmm_bench.report import table, write
    from flmm_bench.run import measure
    from flmm_core.common.devices import check_device

    check_device(torch.device(args.device))
    found = measure(
        device=args.device, rounds=args.rounds, small=args.small, parts=parts if args.lmm else None, dtype=args.dtype
    )
    print(table(found.rows))
    name = _name(args)
    write(args.out, name, found)
    print(f"bench: {args.out / name}.md, .json, .png")
    return 0


def _name(args: argparse.Namespace) -> str:
    return str(args.name or args.device)
