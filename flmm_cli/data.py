"""`flmm data check` and `flmm convert-data`: inspects and converts published data sets."""

from __future__ import annotations

import argparse
from pathlib import Path

from flmm_cli.shared.options import require_counts
from flmm_cli.shared.outputs import add_output
from flmm_cli.shared.table import format_table

SHOWN = 10
"""Samples that are drawn."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the commands."""
    data = subparsers.add_parser("data", help="inspect data sets", description="Inspects data sets.")
    actions = data.add_subparsers(title="what to do", dest="action", metavar="ACTION", required=True)
    check = actions.add_parser(
        "check",
        help="format, size and broken parts of a data set",
        description="Detects the layout of a folder, reads all its images and annotations, prints counts and broken parts, and"
        " draws ten samples.",
    )
    check.add_argument("source", metavar="DATA", help="FOLDER, FORMAT=FOLDER, or either with @SPLIT")
    check.add_argument("--limit", type=int, help="at most this many images of a split, spread over it (default: all)")
    add_output(
        check,
        "--out",
        output={"image": True},
        default=Path("data_check.png"),
        help="image of ten samples to write (default: %(default)s)",
    )
    convert = subparsers.add_parser(
        "convert-data",
        help="write RefCOCO's pickles as JSON",
        description="Writes each refs(*).p of a folder as JSON beside it. Only plain data is read from a pickle; one that"
        " refers to code is refused.",
    )
    convert.add_argument("folder", type=Path, help="folder of RefCOCO, RefCOCO+ or RefCOCOg")


def run(args: argparse.Namespace) -> int:
    """Run one of the commands."""
    return _convert(args) if args.command == "convert-data" else _check(args)


def _convert(args: argparse.Namespace) -> int:
    from flmm_core.data.pickles import convert_refs

    for path in convert_refs(args.folder):
        print(f"expressions: {path}")
    return 0


def _check(args: argparse.Namespace) -> int:
    require_counts(args, "limit")
    from flmm_core.data.check import look_through
    from flmm_core.data.formats import open_splits
    from flmm_core.drawing.truth import truth_sheet
    from flmm_core.images.files import write_image

    samples, broken, datasets = [], 0, open_splits(args.source)
    for dataset in datasets:
        findings = look_through(dataset, limit=args.limit, shown=-(-SHOWN // len(datasets)))
        title = f"{dataset.format}: {dataset.folder}" + (f", split {dataset.split}" if dataset.split else "")
        print(format_table((title, "count"), list(findings.rows()), width=120))
        for what, messages, count in (
            ("broken", findings.broken_messages, findings.broken),
            ("left out", findings.left_out_messages, findings.left_out),
        ):
            for message in messages:
                print(f"{what}: {message}")
            if count > len(messages):
                print(f"{what}: and {count - len(messages):,} more")
        samples += findings.samples
        broken += findings.broken
    if samples:
        write_image(args.out, truth_sheet(samples[:SHOWN]), args.command)
        print(f"samples: {args.out}")
    return 1 if broken else 0
