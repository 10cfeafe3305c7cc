"""`flmm eval res`, `png`, `reasonseg`: the field's benchmarks on their published data."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from flmm_cli.counts import require_counts
from flmm_cli.json_files import provenance, write_json
from flmm_cli.model_options import add_model_options, grounding_config, load_pipeline
from flmm_cli.table import format_table

if TYPE_CHECKING:
    from flmm_core.evaluation.benchmarks import Evaluate
    from flmm_core.evaluation.cases import ImageCases
    from flmm_core.evaluation.metrics import Figure

PROTOCOLS = ("together", "apart")
"""As in :mod:`flmm_core.evaluation.benchmarks`, which brings PyTorch."""

SUITES = {
    "res": (
        "referring segmentation: RefCOCO, RefCOCO+, RefCOCOg, gRefCOCO",
        "Grounds the expressions of a data set, and prints cIoU, gIoU, precision at IoU 0.5 to 0.9 and, where some mean nothing"
        " in the image, no-target and target accuracy. Two protocols: `together`, one expression for each object and all of an"
        " image in one sequence, as F-LMM was evaluated; `apart`, every expression by itself, the standard of the field.",
    ),
    "png": (
        "Panoptic Narrative Grounding",
        "Lets the LMM read narratives and grounds their phrases; prints average recall of all, things, stuff, singulars and"
        " plurals.",
    ),
    "reasonseg": (
        "reasoning segmentation: ReasonSeg",
        "Asks the questions of a data set; all that an answer points at is its mask. Prints gIoU, cIoU and precision.",
    ),
}
"""What each measures, in short and in full."""


def add_suites(suites: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the suites."""
    for name, (summary, description) in SUITES.items():
        parser = suites.add_parser(name, help=summary, description=description)
        parser.add_argument("data", metavar="DATA", help="FOLDER, FORMAT=FOLDER, or either with @SPLIT")
        if name == "res":
            parser.add_argument("--protocol", choices=PROTOCOLS, default="apart", help="(default: %(default)s)")
        parser.add_argument("--limit", type=int, help="most images, spread over the data set; default: all of them")
        parser.add_argument("--json", type=Path, help="write figures, command, model and versions to this file")
        parser.add_argument("--markdown", type=Path, help="write the table to this file, with published figures beside")
        parser.add_argument("--html", type=Path, help="write a page of the best and worst images to this file")
        add_model_options(parser)


def run_suite(args: argparse.Namespace) -> int:
    """Measure, print the table, and write what was asked for."""
    require_counts(args, "limit")
    config = grounding_config(args)

    from tqdm import tqdm

    from flmm_core.data.formats import open_dataset
    from flmm_core.evaluation.benchmarks import run_benchmark
    from flmm_core.evaluation.pages import extremes_page, markdown_table
    from flmm_core.evaluation.published import published_figures

    dataset = open_dataset(args.data)
    evaluate, figures_of = _suite(args)
    context = provenance(args, config)
    skipped: list[str] = []

    def tell(line: str) -> None:
        skipped.append(line)
        tqdm.write(line)

    images = run_benchmark(load_pipeline(config), dataset, evaluate, tell=tell, limit=args.limit)
    figures = figures_of(images)
    published = {name: published_figures(dataset.folder.resolve().name, name) for name in figures}
    rows = [(name, f"{f.value:.3f}", f"{f.low:.3f} to {f.high:.3f}", str(f.count)) for name, f in figures.items()]
    print(format_table(("figure", "value", "95 % interval", "cases"), rows, width=120))
    protocol = f", expressions {args.protocol}" if args.suite == "res" else ""
    title = f"{args.suite}: {dataset.folder.resolve().name} {dataset.split}".strip() + protocol
    seconds = sum(image.seconds for image in images)
    print(f"{title}; {len(images)} images, {len(skipped)} skipped, {seconds / len(images):.2f} s for each image")
    table = markdown_table(figures, published)
    if args.json:
        record = {"data": args.data, "protocol": protocol.removeprefix(", "), "images": len(images), "skipped": skipped}
        rows_ = [{"figure": name, **asdict(figure)} for name, figure in figures.items()]
        write_json(args.json, {**context, **record, "rows": rows_, "published": published})
        print(f"figures: {args.json}")
    if args.markdown:
        args.markdown.write_text(f"{title}; {len(images)} images.\n\n{table}")
        print(f"table: {args.markdown}")
    if args.html:
        args.html.write_text(extremes_page(title, table, dataset, images))
        print(f"best and worst images: {args.html}")
    return 0


def _suite(args: argparse.Namespace) -> tuple[Evaluate, Callable[[list[ImageCases]], dict[str, Figure]]]:
    from flmm_core.evaluation.benchmarks import narratives, reasoning, referring
    from flmm_core.evaluation.cases import figures_of, recall_figures

    if args.suite == "res":
        return referring(args.protocol), figures_of
    return (narratives, recall_figures) if args.suite == "png" else (reasoning, figures_of)
