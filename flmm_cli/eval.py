"""`flmm eval`: measures a grounding model on pictures with known answers and masks."""

from __future__ import annotations

import argparse
import shlex
import time
from itertools import islice
from pathlib import Path

from flmm_cli.held_out import rendered_scenes
from flmm_cli.model_options import add_model_options, grounding_config, load_pipeline, model_names
from flmm_cli.table import format_table

QUICK_PICTURES = 40


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser("eval", help="measure a model", description="Measures a grounding model.")
    suites = parser.add_subparsers(title="what to measure", dest="suite", metavar="SUITE", required=True)
    tabletop = suites.add_parser(
        "tabletop",
        help="answers, masks and keywords on simulated table-top scenes",
        description="Asks everything that a data set of `flmm scenes` knows about its pictures, and prints right answers by"
        " kind of question, cIoU and mIoU of chat and refer mode before and after SAM, and F1 of the keyword selector, each"
        " with its 95 % interval. Without --data it renders scenes of the split `test`, which no training uses.",
    )
    tabletop.add_argument("--data", type=Path, help="folder of a data set; default: render --count scenes of --seed")
    tabletop.add_argument("--count", type=int, default=200, help="scenes to render without --data (default: %(default)s)")
    tabletop.add_argument("--seed", type=int, default=0, help="seed of the scenes to render (default: %(default)s)")
    tabletop.add_argument("--limit", type=int, help="most pictures; default: all of them")
    tabletop.add_argument("--per-kind", type=int, default=2, help="questions of each kind and picture (default: %(default)s)")
    tabletop.add_argument(
        "--quick", action="store_true", help=f"{QUICK_PICTURES} pictures, one question of each kind: a first impression"
    )
    tabletop.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    tabletop.add_argument("--out", type=Path, help="write all figures and the first wrong answers to this JSON file")
    add_model_options(tabletop)


def run(args: argparse.Namespace) -> int:
    """Evaluate."""
    if args.quick:
        args.per_kind, args.limit = 1, min(args.limit or QUICK_PICTURES, QUICK_PICTURES)
        args.count = min(args.count, QUICK_PICTURES)
    for name in ("count", "limit", "per_kind", "workers"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least 1, got {value}")
    config = grounding_config(args)

    from flmm_core.data.dataset import read_dataset
    from flmm_core.evaluation.report import report_of, table_rows, write_json
    from flmm_core.evaluation.tabletop import evaluate_pictures

    data = args.data or rendered_scenes(args.count, args.seed, args.workers)
    began = time.monotonic()
    pictures = list(islice(read_dataset(data), args.limit))
    report = report_of(evaluate_pictures(pictures, config, per_kind=args.per_kind, workers=args.workers, load=load_pipeline))
    seconds = time.monotonic() - began
    print(format_table(("figure", "value", "95 % interval", "cases"), table_rows(report), width=120))
    stages = ", ".join(f"{name.replace('_', ' ')} {1000 * value:.0f}" for name, value in vars(report.chat_seconds).items())
    print(f"{report.pictures} pictures in {seconds:.0f} s; median ms of a chat: {stages}")
    if args.out:
        command = shlex.join(["flmm", *args.arguments])
        source = str(args.data) if args.data else f"flmm scenes --split test --seed {args.seed} --count {args.count}"
        context = {"command": command, "model": model_names(config), "data": source, "per_kind": args.per_kind}
        finished = time.strftime("%Y-%m-%dT%H:%M:%S%z")
        write_json(args.out, report, **context, finished=finished, seconds=seconds, workers=args.workers)
        print(f"figures: {args.out}")
    return 0
