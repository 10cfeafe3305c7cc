"""Questions about small parts of images, answered directly and after a closer look (Visual CoT).

The published score asks a language model of a service how alike two answers are. Here an answer is right if it holds the true
one, word for word, which anyone can repeat; the answers are kept, so that they can be scored in any other way.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flmm_core.chat.closer_look import look_closer
from flmm_core.data.samples import DETAIL, Dataset, Sample
from flmm_core.data.visit import visit_samples
from flmm_core.evaluation.cases import Case, ImageCases
from flmm_core.evaluation.matching import normalise_answer
from flmm_core.evaluation.metrics import Figure, Tally, ratio, share
from flmm_core.pipeline import GroundingPipeline

FOUND = 0.5
"""Least IoU of the part with the true one, from which it counts as found."""

_ARTICLES = ("a", "an", "the")


@dataclass(frozen=True)
class Detail:
    """A question with both answers."""

    index: int
    """Index of its sample in the data set."""
    path: Path
    question: str
    true: str
    glance: str
    """The answer to the image alone."""
    answer: str
    """The answer after the closer look."""
    box: tuple[int, int, int, int] | None
    """XYXY pixels of the part that was enlarged, ends exclusive; None if no part was found."""
    part: Case
    """The part compared with the true one."""
    seconds_glance: float
    seconds: float


def run_details(
    pipeline: GroundingPipeline, dataset: Dataset[Any], *, tell: Callable[[str], None], limit: int | None = None
) -> list[list[Detail]]:
    """Ask the questions of a data set, with a progress bar; a list for each image.

    Args:
        pipeline: what is evaluated.
        dataset: whose questions.
        tell: called with one line for each sample that cannot be used; it is skipped.
        limit: samples to look at, spread over the data set; None for all.
    """
    found = visit_samples(dataset, lambda index, sample: ask_sample(pipeline, sample, index), tell=tell, limit=limit)
    if not found:
        raise ValueError(f"{dataset.folder}: expected questions about parts of images, got none")
    return found


def ask_sample(pipeline: GroundingPipeline, sample: Sample, index: int) -> list[Detail] | None:
    """Ask the questions of a sample in both ways; None if it has none."""
    image = pipeline.encode(sample.image())
    details = []
    for turn in sample.turns:
        if turn.kind != DETAIL:
            continue
        began = time.monotonic()
        glance = pipeline.chat(image, turn.question)
        between = time.monotonic()
        look = look_closer(pipeline, image, turn.question)
        ended = time.monotonic()
        seen = np.zeros((look.answer.image_height, look.answer.image_width), bool)
        if look.box is not None:
            x0, y0, x1, y1 = look.box
            seen[y0:y1, x0:x1] = True
        times = (between - began, ended - between)
        words = (turn.question, turn.answer, glance.text, look.answer.text)
        part = Case.of(turn.question, seen, sample, turn.spans[0].objects)
        details.append(Detail(index, sample.path, *words, look.box, part, *times))
    return details or None


def detail_figures(images: Sequence[Sequence[Detail]]) -> dict[str, Figure]:
    """Right answers in both ways, and how well the part was found; intervals resample images."""

    def mean(of: Callable[[Detail], float]) -> Figure:
        sums = [sum(map(of, details)) for details in images]
        return ratio(sums, [len(details) for details in images], count=sum(map(len, images)))

    return {
        "right at once": share([Tally.of(holds(one.glance, one.true) for one in details) for details in images]),
        "right after a closer look": share([Tally.of(holds(one.answer, one.true) for one in details) for details in images]),
        f"part found (IoU {FOUND})": share([Tally.of(one.part.iou >= FOUND for one in details) for details in images]),
        "IoU of the part": mean(lambda one: one.part.iou),
        "seconds at once": mean(lambda one: one.seconds_glance),
        "seconds with a closer look": mean(lambda one: one.seconds),
    }


def parts_of(details: Sequence[Detail]) -> ImageCases:
    """The enlarged parts for the questions of one image, as cases for a page."""
    seconds = sum(one.seconds_glance + one.seconds for one in details)
    return ImageCases(details[0].index, details[0].path, tuple(one.part for one in details), seconds)


def holds(answer: str, true: str) -> bool:
    """Whether an answer holds the true one, word for word; case, punctuation and articles do not count."""
    said, wanted = ([word for word in normalise_answer(text).split() if word not in _ARTICLES] for text in (answer, true))
    return bool(wanted) and any(said[i : i + len(wanted)] == wanted for i in range(len(said)))
