"""`flmm eval`: measures a grounding model on images with known answers and masks; the suites of the table-top world."""

from __future__ import annotations

import argparse
import time
from itertools import islice
from pathlib import Path

from flmm_cli.benchmarks import SUITES, add_suites, run_suite
from flmm_cli.counts import require_counts
from flmm_cli.held_out import rendered_scenes
from flmm_cli.json_files import provenance, write_json
from flmm_cli.model_options import add_model_options, grounding_config, load_pipeline
from flmm_cli.table import format_table


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser("eval", help="measure a model", description="Measures a grounding model.")
    suites = parser.add_subparsers(title="what to measure", dest="suite", metavar="SUITE", required=True)
    tabletop = suites.add_parser(
        "tabletop",
        help="answers, masks and keywords on simulated table-top scenes",
        description="Asks questions of every kind about simulated images, and prints right answers by kind, cIoU and mean IoU"
        " of chat and refer mode before and after SAM, how often nothing is pointed at that is not there, and how well"
        " keywords are picked, each with its 95 % interval and number of cases. Without --data it renders scenes of the"
        " split `test`, which no training uses.",
    )
    tabletop.add_argument("--data", type=Path, help="folder of a data set; default: render --count scenes of --seed")
    tabletop.add_argument("--count", type=int, default=400, help="scenes to render without --data (default: %(default)s)")
    tabletop.add_argument("--seed", type=int, default=0, help="seed of the scenes to render (default: %(default)s)")
    tabletop.add_argument("--limit", type=int, help="most images; default: all of them")
    tabletop.add_argument("--per-kind", type=int, default=1, help="questions of each kind and image (default: %(default)s)")
    tabletop.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    tabletop.add_argument("--json", type=Path, help="write all figures and the first wrong answers to this file")
    add_model_options(tabletop)
    picking = suites.add_parser(
        "picking",
        help="how often a simulated gripper lifts what it was told to",
        description="Tells a robot to pick up a thing of each of many simulated scenes that no training saw: the model answers"
        " and points, depth says where the thing is, and a gripper in MuJoCo's physics goes there, closes and lifts.",
    )
    picking.add_argument("--count", type=int, default=100, help="scenes (default: %(default)s)")
    picking.add_argument("--seed", type=int, default=0, help="seed of the scenes (default: %(default)s)")
    picking.add_argument("--json", type=Path, help="write what became of each attempt to this file")
    add_model_options(picking)
    add_suites(suites)


def run(args: argparse.Namespace) -> int:
    """Measure, print the table, and write what was asked for."""
    if args.suite in SUITES:
        return run_suite(args)
    return _run_picking(args) if args.suite == "picking" else _run_tabletop(args)


def _run_picking(args: argparse.Namespace) -> int:
    require_counts(args, "count")
    config = grounding_config(args)

    from flmm_demo.picking import attempts, record, rows

    context = provenance(args, config)
    found = attempts(load_pipeline(config), args.count, args.seed)
    print(format_table(("what became of it", "attempts", "share"), rows(found), width=120))
    if args.json:
        write_json(args.json, {**context, **record(found)})
        print(f"figures: {args.json}")
    return 0


def _run_tabletop(args: argparse.Namespace) -> int:
    require_counts(args, "count", "limit", "per_kind", "workers")
    config = grounding_config(args)

    from flmm_core.data.tabletop import read_dataset
    from flmm_core.evaluation.report import report_of
    from flmm_core.evaluation.tabletop import evaluate_images

    context = provenance(args, config)
    data = args.data or rendered_scenes(args.count, args.seed, args.workers)
    began = time.monotonic()
    samples = list(islice(read_dataset(data), args.limit))
    report = report_of(evaluate_images(samples, config, per_kind=args.per_kind, workers=args.workers, load=load_pipeline))
    print(format_table(("figure", "value", "95 % interval", "cases"), report.table(), width=120))
    stages = ", ".join(f"{name.replace('_', ' ')} {1000 * value:.0f}" for name, value in vars(report.seconds).items())
    print(f"{report.images} images in {time.monotonic() - began:.0f} s; median ms of a question: {stages}")
    if args.json:
        source = str(args.data) if args.data else f"flmm scenes --split test --seed {args.seed} --count {args.count}"
        write_json(args.json, {**context, "data": source, "per_kind": args.per_kind, **report.record()})
        print(f"figures: {args.json}")
    return 0
