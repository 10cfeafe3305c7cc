"""The suites of the simulated table tops: `tabletop` and `picking`."""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flmm_cli.shared.held_out import rendered_scenes
from flmm_cli.shared.outputs import add_output
from flmm_cli.suites.suite import FIGURE_HEADERS, Report, Skipped, Suite

if TYPE_CHECKING:
    from flmm_core.config import GroundingConfig


def _add_tabletop_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data", type=Path, help="folder of a data set (default: render --count scenes of --seed)")
    parser.add_argument("--count", type=int, default=400, help="scenes to render without --data (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the scenes to render (default: %(default)s)")
    parser.add_argument("--limit", type=int, help="use at most this many images (default: all)")
    parser.add_argument("--per-kind", type=int, default=1, help="questions of each kind and image (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=1, help="processes (default: %(default)s)")
    add_output(parser, "--json", help="write all figures and the first wrong answers to this file")


def _measure_tabletop(args: argparse.Namespace, config: GroundingConfig, _: Any) -> Report:
    from flmm_core.data.tabletop import read_dataset
    from flmm_core.data.visit import usable_samples
    from flmm_core.evaluation.report import report_of
    from flmm_core.evaluation.workers import evaluate_images
    from flmm_core.pipeline import GroundingPipeline

    data = args.data or rendered_scenes(args.count, args.seed, args.workers)
    began = time.monotonic()
    skipped = Skipped()
    dataset = read_dataset(data)
    samples = usable_samples(replace(dataset, entries=dataset.entries[: args.limit]), tell=skipped)
    load = GroundingPipeline.from_config
    found = report_of(evaluate_images(samples, config, tell=skipped, per_kind=args.per_kind, workers=args.workers, load=load))
    stages = ", ".join(f"{name.replace('_', ' ')} {1000 * value:.0f}" for name, value in vars(found.seconds).items())
    source = str(args.data) if args.data else f"flmm scenes --split test --seed {args.seed} --count {args.count}"
    counts = f"{found.images} images, {len(skipped.lines)} skipped, in {time.monotonic() - began:.0f} s"
    return Report(
        FIGURE_HEADERS,
        found.table(),
        f"{counts}; median ms of a question: {stages}",
        {"data": source, "per_kind": args.per_kind, "skipped": skipped.lines, **found.record()},
    )


def _add_picking_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", type=int, default=100, help="scenes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the scenes (default: %(default)s)")
    add_output(parser, "--json", help="write the result of each attempt to this file")


def _measure_picking(args: argparse.Namespace, config: GroundingConfig, _: Any) -> Report:
    from flmm_core.pipeline import GroundingPipeline
    from flmm_demo.picking import attempts, record, rows

    found = attempts(GroundingPipeline.from_config(config), args.count, args.seed)
    return Report(("result", "attempts", "share"), rows(found), "", record(found))


TABLETOP = Suite(
    name="tabletop",
    help="answers, masks and keywords on simulated table-top scenes",
    description="Asks questions of every kind about simulated images, and prints right answers by kind, cIoU and mean IoU"
    " of chat and refer mode before and after SAM, how often absent objects rightly get no mask, and how well keywords are"
    " selected, each with its 95 % interval and number of cases. Without --data it renders scenes of the split `test`, which"
    " no training uses.",
    add_options=_add_tabletop_options,
    measure=_measure_tabletop,
    counts=("count", "limit", "per_kind", "workers"),
)
PICKING = Suite(
    name="picking",
    help="how often a simulated gripper lifts the named object",
    description="Asks for an object to be picked up in each of many simulated scenes that no training used: the model answers"
    " and grounds the object, depth locates it, and a gripper in MuJoCo's physics approaches, closes and lifts.",
    add_options=_add_picking_options,
    measure=_measure_picking,
    counts=("count",),
)
