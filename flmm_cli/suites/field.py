"""The suites of the field's benchmarks: `res`, `png`, `reasonseg`, `gcg` and `viscot`."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from flmm_cli.shared.outputs import add_output
from flmm_cli.suites.suite import FIGURE_HEADERS, Report, Skipped, Suite, add_data_options, open_published

if TYPE_CHECKING:
    from flmm_core.config import GroundingConfig
    from flmm_core.data.samples import Dataset
    from flmm_core.evaluation.cases import ImageCases
    from flmm_core.evaluation.metrics import Figure
    from flmm_core.pipeline import GroundingPipeline

PROTOCOLS = ("together", "apart")
"""Those of :mod:`flmm_core.evaluation.benchmarks`, which imports PyTorch."""


@dataclass(frozen=True)
class Measured:
    """Figures of a benchmark."""

    figures: dict[str, Figure]
    images: int
    seconds: float
    """For all images together."""
    cases: Sequence[ImageCases] = ()
    """For the page of best and worst images."""
    answers: list[dict[str, Any]] = field(default_factory=list)
    """What the LMM answered, for other ways of judging it."""
    notes: tuple[str, ...] = ()
    """Lines about what was not measured."""


Measure = Callable[["argparse.Namespace", "GroundingPipeline", "Dataset[Any]", Callable[[str], None]], Measured]
"""Measures a data set; the last argument is called with a line for each image that is skipped."""


def _referring(
    args: argparse.Namespace, pipeline: GroundingPipeline, dataset: Dataset[Any], tell: Callable[[str], None]
) -> Measured:
    from flmm_core.evaluation.benchmarks import referring, run_benchmark
    from flmm_core.evaluation.cases import figures_of

    images = run_benchmark(pipeline, dataset, referring(args.protocol), tell=tell, limit=args.limit)
    return Measured(figures_of(images), len(images), sum(image.seconds for image in images), images)


def _narratives(
    args: argparse.Namespace, pipeline: GroundingPipeline, dataset: Dataset[Any], tell: Callable[[str], None]
) -> Measured:
    from flmm_core.evaluation.benchmarks import narratives, run_benchmark
    from flmm_core.evaluation.cases import recall_figures

    images = run_benchmark(pipeline, dataset, narratives, tell=tell, limit=args.limit)
    return Measured(recall_figures(images), len(images), sum(image.seconds for image in images), images)


def _reasoning(
    args: argparse.Namespace, pipeline: GroundingPipeline, dataset: Dataset[Any], tell: Callable[[str], None]
) -> Measured:
    from flmm_core.evaluation.benchmarks import reasoning, run_benchmark
    from flmm_core.evaluation.cases import figures_of

    images = run_benchmark(pipeline, dataset, reasoning, tell=tell, limit=args.limit)
    return Measured(figures_of(images), len(images), sum(image.seconds for image in images), images)


def _captions(
    args: argparse.Namespace, pipeline: GroundingPipeline, dataset: Dataset[Any], tell: Callable[[str], None]
) -> Measured:
    from flmm_core.evaluation.conversations import bert_similarity, conversation_figures, run_conversations

    similarity = bert_similarity(args.text_model) if args.text_model else None
    said = run_conversations(pipeline, dataset, tell=tell, limit=args.limit)
    figures = conversation_figures(said, similarity)
    no_java = ("METEOR and CIDEr: not measured, expected Java on this machine, got none",)
    notes = no_java if math.isnan(figures["METEOR"].value) else ()
    return Measured(figures, len(said), sum(one.seconds for one in said), notes=notes)


def _second_looks(
    args: argparse.Namespace, pipeline: GroundingPipeline, dataset: Dataset[Any], tell: Callable[[str], None]
) -> Measured:
    from flmm_core.evaluation.details import detail_figures, parts_of, run_details

    details = run_details(pipeline, dataset, tell=tell, limit=args.limit)
    names = ("question", "true", "glance", "answer", "box")
    answers = [{"image": one.path.name, **{name: getattr(one, name) for name in names}} for image in details for one in image]
    images = [parts_of(image) for image in details]
    return Measured(detail_figures(details), len(images), sum(image.seconds for image in images), images, answers)


def _report(name: str, measure: Measure, args: argparse.Namespace, config: GroundingConfig, dataset: Dataset[Any]) -> Report:
    """Measure a benchmark; its report has published figures beside its own."""
    from flmm_core.common.plain_text import printable
    from flmm_core.evaluation.metrics import figure_cells
    from flmm_core.evaluation.pages import extremes_page, markdown_table
    from flmm_core.evaluation.published import published_figures
    from flmm_core.evaluation.report import plain_figure
    from flmm_core.pipeline import GroundingPipeline

    skipped = Skipped()
    measured = measure(args, GroundingPipeline.from_config(config), dataset, skipped)
    folder = dataset.folder.resolve().name
    published = {figure: published_figures(folder, dataset.split, figure) for figure in measured.figures}
    protocol = f"expressions {args.protocol}" if "protocol" in args else ""
    title = printable(", ".join(part for part in (f"{name}: {folder} {dataset.split}", protocol) if part))
    each = measured.seconds / measured.images
    table = markdown_table(measured.figures, published)
    numbers = [{"figure": figure, **plain_figure(value)} for figure, value in measured.figures.items()]
    record = {"data": args.data, "protocol": protocol, "images": measured.images, "skipped": skipped.lines}
    record |= {"answers": measured.answers} if measured.answers else {}
    summary = f"{title}; {measured.images} images, {len(skipped.lines)} skipped, {each:.2f} s for each image"
    return Report(
        FIGURE_HEADERS,
        [(figure, *figure_cells(value)) for figure, value in measured.figures.items()],
        "\n".join((*measured.notes, summary)),
        {**record, "rows": numbers, "published": published},
        markdown=f"{title}; {measured.images} images.\n\n{table}",
        page=lambda: extremes_page(title, table, dataset, measured.cases),
    )


def _add_page_options(parser: argparse.ArgumentParser) -> None:
    add_data_options(parser)
    add_output(parser, "--html", help="write a page of the best and worst images to this file")


def _add_referring_options(parser: argparse.ArgumentParser) -> None:
    _add_page_options(parser)
    parser.add_argument("--protocol", choices=PROTOCOLS, default="apart", help="(default: %(default)s)")


def _add_caption_options(parser: argparse.ArgumentParser) -> None:
    add_data_options(parser)
    parser.add_argument(
        "--text-model",
        default="",
        help="BERT that compares phrases, for instance bert-base-uncased (default: mask recall compares no words)",
    )


def _benchmark(
    name: str,
    measure: Measure,
    help: str,
    description: str,
    add_options: Callable[[argparse.ArgumentParser], None] = _add_page_options,
) -> Suite:
    run = partial(_report, name, measure)
    return Suite(name, help, description, add_options, run, open_data=open_published, counts=("limit",))


BENCHMARKS = (
    _benchmark(
        "res",
        _referring,
        "referring segmentation: RefCOCO, RefCOCO+, RefCOCOg, gRefCOCO",
        "Grounds the expressions of a data set, and prints cIoU, gIoU, precision at IoU 0.5 to 0.9 and, where some expressions"
        " refer to nothing in the image, no-target and target accuracy. Two protocols: `together`, one expression for each"
        " object and all of an image in one sequence, as F-LMM was evaluated; `apart`, every expression by itself, the"
        " standard of the field.",
        _add_referring_options,
    ),
    _benchmark(
        "png",
        _narratives,
        "Panoptic Narrative Grounding",
        "Teacher-forces narratives and grounds their phrases; prints average recall of all, things, stuff, singulars and"
        " plurals.",
    ),
    _benchmark(
        "reasonseg",
        _reasoning,
        "reasoning segmentation: ReasonSeg",
        "Asks the questions of a data set; the union of an answer's masks is its mask. Prints gIoU, cIoU and precision.",
    ),
    _benchmark(
        "gcg",
        _captions,
        "grounded conversation generation: GranD-f",
        "Lets the model describe the images of a data set, and prints METEOR and CIDEr of the captions (these need Java) and"
        " AP50, mIoU and recall of the masks.",
        _add_caption_options,
    ),
    _benchmark(
        "viscot",
        _second_looks,
        "visual chain of thought: Visual CoT",
        "Asks each question directly and after a second look: the LMM names the relevant part, which it gets once more,"
        " enlarged, as a second image. Prints right answers (they contain the true one word for word) and how well the part"
        " was found.",
    ),
)
