"""Runs a pipeline on published benchmarks: referring segmentation, narratives, and reasoning.

Each evaluation returns the cases of one sample; :func:`run_benchmark` applies it to a data set.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from flmm_core.data.samples import (
    DESCRIBE,
    REASON,
    REFER_KINDS,
    Dataset,
    Expression,
    Sample,
    expressions_of,
)
from flmm_core.data.visit import visit_samples
from flmm_core.evaluation.cases import Case, ImageCases
from flmm_core.pipeline import GroundingPipeline
from flmm_core.requests.image_handle import ImageHandle

Evaluate = Callable[[GroundingPipeline, ImageHandle, Sample], list[Case]]

PROTOCOLS = ("together", "apart")
"""Protocols of referring segmentation. ``together``: one expression for each object, all of an image in one sequence (F-LMM).
``apart``: every expression by itself, the usual protocol."""


def referring(protocol: str) -> Evaluate:
    """Referring segmentation by one of :data:`PROTOCOLS`, also for the texts of ReasonSeg that are not questions."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got {protocol}")

    def evaluate(pipeline: GroundingPipeline, image: ImageHandle, sample: Sample) -> list[Case]:
        asked = [one for turn in sample.turns if turn.kind in REFER_KINDS for one in expressions_of(turn)]
        groups = [first_of_each(asked)] if protocol == "together" else [[one] for one in asked]
        cases = []
        for group in groups:
            if not group:
                continue
            answer = pipeline.refer(image, [one.words for one in group], max_phrases=len(group))
            for one, phrase in zip(group, answer.phrases, strict=True):
                cases.append(Case.of(one.words, phrase.mask, sample, one.objects))
        return cases

    return evaluate


def first_of_each(expressions: Sequence[Expression]) -> list[Expression]:
    """The first expression for each object or group of objects, and all expressions without an object."""
    seen: set[tuple[int, ...]] = set()
    kept = []
    for one in expressions:
        if not one.objects or one.objects not in seen:
            kept.append(one)
            seen.add(one.objects)
    return kept


def narratives(pipeline: GroundingPipeline, image: ImageHandle, sample: Sample) -> list[Case]:
    """PNG: the narrative is read as an answer, and each of its phrases is grounded."""
    cases = []
    for turn in sample.turns:
        if turn.kind != DESCRIBE or not turn.spans:
            continue
        answer = pipeline.ground(image, turn.question, turn.answer, [(span.start, span.end) for span in turn.spans])
        for span, phrase in zip(turn.spans, answer.phrases, strict=True):
            cases.append(Case.of(phrase.text, phrase.mask, sample, span.objects, span.tags))
    return cases


def reasoning(pipeline: GroundingPipeline, image: ImageHandle, sample: Sample) -> list[Case]:
    """ReasonSeg: the mask of a question is the union of all masks of its answer; other texts are phrases of refer mode."""
    cases = referring("apart")(pipeline, image, sample)
    for turn in sample.turns:
        if turn.kind == REASON:
            answer = pipeline.chat(image, turn.question)
            found = np.zeros((answer.image_height, answer.image_width), bool)
            for phrase in answer.phrases:
                found |= phrase.mask
            cases.append(Case.of(f"{turn.question} {answer.text}", found, sample, turn.spans[0].objects))
    return cases


def run_benchmark(
    pipeline: GroundingPipeline,
    dataset: Dataset[Any],
    evaluate: Evaluate,
    *,
    tell: Callable[[str], None],
    limit: int | None = None,
) -> list[ImageCases]:
    """Evaluate a pipeline on a data set, with a progress bar.

    Args:
        pipeline: what is evaluated.
        dataset: whose samples are used.
        evaluate: one of this module's evaluations.
        tell: called with one line for each sample that cannot be used; it is skipped.
        limit: number of images, spread over the data set; None for all.

    Returns:
        The images with at least one case, in order.
    """

    def use(index: int, sample: Sample) -> ImageCases | None:
        began = time.monotonic()
        cases = evaluate(pipeline, pipeline.encode(sample.image()), sample)
        return ImageCases(index, sample.path, tuple(cases), time.monotonic() - began) if cases else None

    images = visit_samples(dataset, use, tell=tell, limit=limit)
    if not images:
        raise ValueError(f"{dataset.folder}: expected samples to evaluate, got none")
    return images
