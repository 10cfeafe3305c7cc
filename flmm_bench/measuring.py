"""Times variants of the same work side by side: a round runs each of them once, and ratios are those within a round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tqdm import tqdm

Variant = Callable[[], Mapping[str, float] | None]
"""Does the work once; may return seconds of its parts by name. ``total`` is measured by the caller."""


@dataclass(frozen=True)
class Spread:
    """Median, quartiles and count of numbers."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """That of at least one number."""
        if len(values) < 2:
            return cls(values[0], values[0], values[0], 1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, len(values))


class Times:
    """Seconds of each variant's parts, by round."""

    def __init__(self, seconds: dict[str, list[dict[str, float]]]) -> None:
        self._seconds = seconds

    def of(self, variant: str, part: str = "total") -> Spread:
        """Seconds of a variant, or of one of its parts."""
        return Spread.of([once[part] for once in self._seconds[variant]])

    def parts_ratio(self, variant: str, part: str, other: str) -> Spread:
        """Time of one part divided by that of another part, within each run of a variant."""
        return Spread.of([once[part] / once[other] for once in self._seconds[variant]])

    def ratio(self, variant: str, other: str, part: str = "total") -> Spread:
        """Time of one variant divided by that of another one, within each round."""
        pairs = zip(self._seconds[variant], self._seconds[other], strict=True)
        return Spread.of([one[part] / two[part] for one, two in pairs])


def interleaved(variants: Mapping[str, Variant], *, rounds: int, title: str, warm_up: bool = True) -> Times:
    """Run all variants in turn, ``rounds`` times.

    Args:
        variants: by name; each round starts with a different one.
        rounds: how often all run.
        title: of the progress bar.
        warm_up: whether to run each once before, untimed.
    """
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    names = list(variants)
    with tqdm(total=(rounds + warm_up) * len(names), desc=title, unit="run", leave=False) as bar:
        for number in range(-int(warm_up), rounds):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                began = time.perf_counter()
                parts = dict(variants[name]() or {})
                parts["total"] = time.perf_counter() - began
                if number >= 0:
                    seconds[name].append(parts)
                bar.update()
    return Times(seconds)
