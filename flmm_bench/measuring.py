"""Takes times of variants of the same work, side by side: a round runs each of them once; ratios are taken round by round."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tqdm import tqdm

Variant = Callable[[], Mapping[str, float] | None]
"""Does the work once; may give times of its own parts by name, in seconds. ``total`` is taken from outside."""


@dataclass(frozen=True)
class Spread:
    """Median and quartiles of a few numbers."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: list[float]) -> Spread:
        """Of at least one number."""
        if len(values) < 2:
            return cls(values[0], values[0], values[0], 1)
        low, median, high = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, low, high, len(values))


class Times:
    """Seconds of each variant's parts, by round."""

    def __init__(self, seconds: dict[str, list[dict[str, float]]]) -> None:
        self._seconds = seconds

    def of(self, variant: str, part: str = "total") -> Spread:
        """Seconds of one variant."""
        return Spread.of([once[part] for once in self._seconds[variant]])

    def parts_ratio(self, variant: str, part: str, other: str) -> Spread:
        """One part's time over another's of the same run of one variant."""
        return Spread.of([once[part] / once[other] for once in self._seconds[variant]])

    def ratio(self, variant: str, other: str, part: str = "total") -> Spread:
        """One variant's time over another's of the same round."""
        pairs = zip(self._seconds[variant], self._seconds[other], strict=True)
        return Spread.of([one[part] / two[part] for one, two in pairs])


def interleaved(variants: Mapping[str, Variant], *, rounds: int, title: str, warm_up: bool = True) -> Times:
    """Run all variants in turn, ``rounds`` times.

    Args:
        variants: by name; each round begins with another one.
        rounds: how often.
        title: for the progress bar.
        warm_up: whether to run each once before, without taking times.
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
