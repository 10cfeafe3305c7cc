"""`flmm eval res`, `png`, `reasonseg`, `gcg`, `viscot` and `baseline`: the field's benchmarks, and the other way to masks."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flmm_cli.counts import require_counts
from flmm_cli.json_files import provenance, write_json
from flmm_cli.model_options import add_model_options, grounding_config, load_pipeline
from flmm_cli.table import format_table

if TYPE_CHECKING:
    from flmm_core.config import GroundingConfig
    from flmm_core.data.samples import Dataset
    from flmm_core.evaluation.cases import ImageCases
    from flmm_core.evaluation.details import Detail
    from flmm_core.evaluation.metrics import Figure
    from flmm_core.pipeline import GroundingPipeline

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
    "gcg": (
        "grounded conversation generation: GranD-f",
        "Has the images of a data set described, and prints METEOR and CIDEr of the words (these need Java) and AP50, mIoU and"
        " recall of the masks.",
    ),
    "viscot": (
        "visual chain of thought: Visual CoT",
        "Asks each question at once and after a closer look: the LMM says what matters, and sees that part once more, enlarged,"
        " as a second image. Prints right answers (they hold the true one word for word) and how well the part was found.",
    ),
    "baseline": (
        "against asking the same LMM for boxes, and SAM for masks",
        "Asks the same frozen LMM for boxes in its own format and gives them to SAM, and prints that beside what this project"
        " does: masks of given expressions, phrases of answers that get a mask, whether the answer stays the same, and time."
        " With boxes an answer needs a second prompt for each phrase, or one that asks for answer and boxes together. The true"
        " box stands beside as a bound.",
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
        if name == "gcg":
            parser.add_argument(
                "--text-model",
                default="",
                help="BERT that compares phrases, for instance bert-base-uncased; default: mask recall compares no words",
            )
        elif name == "baseline":
            parser.add_argument("--questions", type=int, default=2, help="questions of each image (default: %(default)s)")
        else:
            parser.add_argument("--html", type=Path, help="write a page of the best and worst images to this file")
        parser.add_argument("--limit", type=int, help="most images, spread over the data set; default: all of them")
        parser.add_argument("--json", type=Path, help="write figures, command, model and versions to this file")
        parser.add_argument("--markdown", type=Path, help="write the table to this file, with published figures beside")
        add_model_options(parser)


def run_suite(args: argparse.Namespace) -> int:
    """Measure, print the table, and write what was asked for."""
    require_counts(args, "limit")
    config = grounding_config(args)

    from tqdm import tqdm

    from flmm_core.data.formats import open_dataset
    from flmm_core.evaluation.metrics import figure_cells
    from flmm_core.evaluation.pages import extremes_page, markdown_table
    from flmm_core.evaluation.published import published_figures
    from flmm_core.evaluation.report import plain_figure

    if args.suite == "baseline":
        return _run_baseline(args, config)
    dataset = open_dataset(args.data)
    context = provenance(args, config)
    skipped: list[str] = []

    def tell(line: str) -> None:
        skipped.append(line)
        tqdm.write(line)

    measured = _measured(args, load_pipeline(config), dataset, tell)
    name = dataset.folder.resolve().name
    published = {figure: published_figures(name, dataset.split, figure) for figure in measured.figures}
    rows = [(figure, *figure_cells(value)) for figure, value in measured.figures.items()]
    print(format_table(("figure", "value", "95 % interval", "cases"), rows, width=120))
    protocol = f"expressions {args.protocol}" if args.suite == "res" else ""
    title = ", ".join(part for part in (f"{args.suite}: {name} {dataset.split}".strip(), protocol) if part)
    each = measured.seconds / measured.images
    print(f"{title}; {measured.images} images, {len(skipped)} skipped, {each:.2f} s for each image")
    table = markdown_table(measured.figures, published)
    if args.json:
        record = {"data": args.data, "protocol": protocol, "images": measured.images, "skipped": skipped}
        numbers = [{"figure": figure, **plain_figure(value)} for figure, value in measured.figures.items()]
        record |= {"answers": measured.answers} if measured.answers else {}
        write_json(args.json, {**context, **record, "rows": numbers, "published": published})
        print(f"figures: {args.json}")
    if args.markdown:
        args.markdown.write_text(f"{title}; {measured.images} images.\n\n{table}")
        print(f"table: {args.markdown}")
    if getattr(args, "html", None):
        args.html.write_text(extremes_page(title, table, dataset, measured.cases))
        print(f"best and worst images: {args.html}")
    return 0


def _run_baseline(args: argparse.Namespace, config: GroundingConfig) -> int:
    require_counts(args, "questions")

    from tqdm import tqdm

    from flmm_core.data.formats import open_dataset
    from flmm_core.evaluation.baseline import BoxPrompter, comparison_rows, run_comparison
    from flmm_core.evaluation.metrics import figure_cells
    from flmm_core.evaluation.report import plain_figure
    from flmm_core.sam.checkpoints import load_sam

    dataset = open_dataset(args.data)
    context = provenance(args, config)
    prompter = BoxPrompter(load_pipeline(config), load_sam(config.sam))
    found = run_comparison(prompter, dataset, questions=args.questions, tell=tqdm.write, limit=args.limit)
    rows = comparison_rows(found)
    header = ("figure", "ours", "a box for each phrase", "answer and boxes at once", "true boxes", "better")
    ways = ("ours", "second", "together", "oracle")
    cells = [
        (row.name, *("-" if (f := getattr(row, way)) is None else figure_cells(f)[0] for way in ways), row.better)
        for row in rows
    ]
    print(format_table(header, cells, width=120))
    print(f"{len(found)} images; boxes asked for by: {prompter.pipeline.lmm.family.boxes.question}")
    if args.markdown:
        lines = [f"| {' | '.join(line)} |" for line in (header, ("---",) * len(header), *cells)]
        args.markdown.write_text("\n".join(lines) + "\n")
        print(f"table: {args.markdown}")
    if args.json:
        numbers = [
            {"figure": row.name, "better": row.better}
            | {way: None if (f := getattr(row, way)) is None else plain_figure(f) for way in ways}
            for row in rows
        ]
        write_json(args.json, {**context, "data": args.data, "images": len(found), "rows": numbers})
        print(f"figures: {args.json}")
    return 0


@dataclass(frozen=True)
class Measured:
    """What a suite found."""

    figures: dict[str, Figure]
    images: int
    seconds: float
    cases: list[ImageCases]
    """For the page; none of conversations."""
    answers: list[dict[str, Any]] = field(default_factory=list)
    """What was said, where others may want to judge it."""


def _measured(
    args: argparse.Namespace, pipeline: GroundingPipeline, dataset: Dataset[Any], tell: Callable[[str], None]
) -> Measured:
    from flmm_core.evaluation.benchmarks import narratives, reasoning, referring, run_benchmark
    from flmm_core.evaluation.cases import figures_of, recall_figures
    from flmm_core.evaluation.conversations import bert_similarity, conversation_figures, run_conversations
    from flmm_core.evaluation.details import detail_figures, parts_of, run_details

    if args.suite == "gcg":
        similarity = bert_similarity(args.text_model) if args.text_model else None
        said = run_conversations(pipeline, dataset, tell=tell, limit=args.limit)
        found = conversation_figures(said, similarity)
        if math.isnan(found["METEOR"].value):
            print("METEOR and CIDEr: not measured, expected Java on this machine, got none")
        return Measured(found, len(said), sum(one.seconds for one in said), [])
    if args.suite == "viscot":
        details = run_details(pipeline, dataset, tell=tell, limit=args.limit)
        answers = [{"image": one.path.name, **_words(one)} for image in details for one in image]
        images = [parts_of(image) for image in details]
        return Measured(detail_figures(details), len(images), sum(image.seconds for image in images), images, answers)
    evaluate = {"png": narratives, "reasonseg": reasoning}.get(args.suite) or referring(args.protocol)
    images = run_benchmark(pipeline, dataset, evaluate, tell=tell, limit=args.limit)
    figures = (recall_figures if args.suite == "png" else figures_of)(images)
    return Measured(figures, len(images), sum(image.seconds for image in images), images)


def _words(detail: Detail) -> dict[str, Any]:
    names = ("question", "true", "glance", "answer", "box")
    return {name: getattr(detail, name) for name in names}
