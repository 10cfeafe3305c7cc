"""Iterates over the samples of a data set; unusable samples are reported and skipped."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from tqdm import tqdm

from flmm_core.data.samples import BrokenSampleError, Dataset, Sample
from flmm_core.errors import CommandError

T = TypeVar("T")


def spread(count: int, most: int | None) -> Sequence[int]:
    """Indices of at most ``most`` of ``count`` items, evenly spread; all of them if ``most`` is None."""
    return range(count) if most is None or most >= count else [i * count // most for i in range(most)]


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
            one = use(index, dataset[index])
        except (BrokenSampleError, CommandError) as error:
            tell(f"skipped: {error}")
            continue
        if one is not None:
            made.append(one)
    return made
