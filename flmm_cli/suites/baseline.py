"""The suite `baseline`: grounding against boxes that the same LMM writes, and SAM."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

from flmm_cli.suites.suite import Report, Skipped, Suite, add_data_options, open_published

if TYPE_CHECKING:
    from flmm_core.config import GroundingConfig
    from flmm_core.data.samples import Dataset
    from flmm_core.evaluation.metrics import Figure

_WAYS = {
    "ours": "ours",
    "second": "a box for each phrase",
    "together": "answer and boxes at once",
    "oracle": "true boxes",
}
"""Fields of a comparison's rows, and their headers."""


def _add_options(parser: argparse.ArgumentParser) -> None:
    add_data_options(parser)
    parser.add_argument("--questions", type=int, default=2, help="questions of each image (default: %(default)s)")


def _measure(args: argparse.Namespace, config: GroundingConfig, dataset: Dataset[Any]) -> Report:
    from flmm_core.evaluation.baseline import BoxPrompter, comparison_rows, run_comparison
    from flmm_core.evaluation.metrics import figure_cells
    from flmm_core.evaluation.report import plain_figure
    from flmm_core.pipeline import GroundingPipeline
    from flmm_core.sam.checkpoints import load_sam

    pipeline = GroundingPipeline.from_config(config)
    prompter = BoxPrompter(pipeline, load_sam(pipeline.config.sam))
    skipped = Skipped()
    found = run_comparison(prompter, dataset, questions=args.questions, tell=skipped, limit=args.limit)

    def cell(figure: Figure | None) -> str:
        return "-" if figure is None else figure_cells(figure)[0]

    rows = comparison_rows(found)
    headers = ("figure", *_WAYS.values(), "better")
    cells = [(row.name, *(cell(getattr(row, way)) for way in _WAYS), row.better) for row in rows]
    numbers = [
        {"figure": row.name, "better": row.better}
        | {way: None if (figure := getattr(row, way)) is None else plain_figure(figure) for way in _WAYS}
        for row in rows
    ]
    return Report(
        headers,
        cells,
        f"{len(found)} images, {len(skipped.lines)} skipped; prompt for boxes: {prompter.pipeline.lmm.family.boxes.question}",
        {"data": args.data, "images": len(found), "skipped": skipped.lines, "rows": numbers},
        markdown="\n".join(f"| {' | '.join(line)} |" for line in (headers, ("---",) * len(headers), *cells)) + "\n",
    )


BASELINE = Suite(
    name="baseline",
    help="against boxes that the same LMM writes, turned into masks by SAM",
    description="Prompts the same frozen LMM for boxes in its own format, gives them to SAM, and prints the result beside this"
    " project's: masks of given expressions, phrases of answers that get a mask, whether the answer stays the same, and time."
    " For an answer with boxes the LMM needs a second prompt for each phrase, or one prompt that asks for answer and boxes"
    " together. The true box is the upper bound.",
    add_options=_add_options,
    measure=_measure,
    open_data=open_published,
    counts=("limit", "questions"),
)
