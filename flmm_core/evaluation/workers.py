"""Evaluates a grounding model on the images of a data set, in one process or in several."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from tqdm import tqdm

from flmm_core.config import GroundingConfig
from flmm_core.data.broken import BrokenSampleError, sample_errors
from flmm_core.data.samples import Sample
from flmm_core.evaluation.tabletop import ImageEvaluation, ImageRecord
from flmm_core.pipeline import GroundingPipeline

Load = Callable[[GroundingConfig], GroundingPipeline]


def evaluate_images(
    samples: Sequence[Sample],
    config: GroundingConfig,
    *,
    tell: Callable[[str], None],
    per_kind: int | None = None,
    workers: int = 1,
    load: Load = GroundingPipeline.from_config,
) -> list[ImageRecord]:
    """Evaluate a model on images, with a progress bar.

    Args:
        samples: with ground truth.
        config: the model.
        tell: called with one line for each sample that the model cannot use; it is skipped.
        per_kind: most questions of each kind and image; None for all.
        workers: processes, each with the model; they share the processor's cores.
        load: builds the pipeline; with several workers a function of a module, which each of them imports.

    Returns:
        One record for each image that could be used, in order.
    """
    if workers < 1:
        raise ValueError(f"workers: expected at least 1, got {workers}")
    if not samples:
        raise ValueError("samples: expected at least one, got none")
    records = []
    with _mapped(samples, config, per_kind, min(workers, len(samples)), load) as results:
        for result in tqdm(results, total=len(samples), desc="evaluation", unit="image"):
            if isinstance(result, BrokenSampleError):
                tell(f"skipped: {result}")
            else:
                records.append(result)
    if not records:
        raise ValueError("samples: expected some that the model can use, got none")
    return records


@contextmanager
def _mapped(
    samples: Sequence[Sample], config: GroundingConfig, per_kind: int | None, workers: int, load: Load
) -> Iterator[Iterator[ImageRecord | BrokenSampleError]]:
    """The records of the images, in order, as they become available."""
    if workers == 1:
        evaluation = ImageEvaluation(load(config), per_kind=per_kind)
        yield (_tried(evaluation, sample) for sample in samples)
        return
    if not config.cpu_threads:
        config = replace(config, cpu_threads=max(1, (os.cpu_count() or 1) // workers))
    spawn = multiprocessing.get_context("spawn")  # PyTorch's threads hang after a fork
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_start_worker, initargs=(config, per_kind, load)) as pool:
        yield pool.map(_evaluate_in_worker, samples, chunksize=1)


@dataclass
class _Worker:
    """State of a worker process; the model is loaded with the first image, so that a failure reaches the caller."""

    config: GroundingConfig = field(default_factory=GroundingConfig)
    per_kind: int | None = None
    load: Load = GroundingPipeline.from_config
    evaluation: ImageEvaluation | None = None


_worker = _Worker()


def _start_worker(config: GroundingConfig, per_kind: int | None, load: Load) -> None:
    _worker.config, _worker.per_kind, _worker.load = config, per_kind, load


def _tried(evaluation: ImageEvaluation, sample: Sample) -> ImageRecord | BrokenSampleError:
    """The record of a sample, or why it cannot be used, which also passes between processes."""
    try:
        with sample_errors(str(sample.path)):
            return evaluation.run(sample)
    except BrokenSampleError as error:
        return error


def _evaluate_in_worker(sample: Sample) -> ImageRecord | BrokenSampleError:
    if _worker.evaluation is None:
        _worker.evaluation = ImageEvaluation(_worker.load(_worker.config), per_kind=_worker.per_kind)
    return _tried(_worker.evaluation, sample)
