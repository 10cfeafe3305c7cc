"""Iterates over the samples of a data set; unusable samples are reported and skipped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tqdm import tqdm

from flmm_core.data.broken import BrokenSampleError, sample_errors
from flmm_core.data.samples import Dataset, Sample

T = TypeVar("T")


def spread(count: int, most: int | None) -> Sequence[int]:
    """Indices of at most ``most`` of ``count`` items, evenly spread; all of them if ``most`` is None."""
    return range(count) if most is None or most >= count else [i * count // most for i in range(most)]


def usable_samples(dataset: Dataset[Any], *, tell: Callable[[str], None], limit: int | None = None) -> list[Sample]:
    """The samples whose annotations and image can be read, in order; see :func:`visit_samples`."""

    def use(_: int, sample: Sample) -> Sample:
        sample.image()
        return sample

    return visit_samples(dataset, use, tell=tell, limit=limit)


def visit_samples(
    dataset: Dataset[Any], use: Callable[[int, Sample], T | None], *, tell: Callable[[str], None], limit: int | None = None
) -> list[T]:
    """Results of ``use`` for the samples, in order, with a progress bar.

    Args:
        dataset: whose samples are visited.
        use: called with index and sample; None results are left out.
        tell: called with one line for each sample that cannot be used; it is skipped.
        limit: number of samples, spread over the data set; None for all.
    """
    made = []
    for index in tqdm(spread(len(dataset), limit), desc=f"{dataset.format} {dataset.split}".strip(), unit="image"):
        try:
            with sample_errors(dataset.name(index)):
                one = use(index, dataset[index])
        except BrokenSampleError as error:
            tell(f"skipped: {error}")
            continue
        if one is not None:
            made.append(one)
    return made
