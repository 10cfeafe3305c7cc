"""What a run of the benchmark measured."""

from __future__ import annotations

from dataclasses import dataclass, field

from flmm_bench.rows import Row


@dataclass(frozen=True)
class Rates:
    """What the machine can do at most: floors of times are counted from it."""

    flops: float
    """Operations a second in a large matrix product."""
    bytes: float
    """Bytes a second that a matrix-vector product reads."""
    dtype: str


@dataclass
class Findings:
    """What came out."""

    rates: Rates
    rows: list[Row] = field(default_factory=list)
    floors: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    """What was not measured, and why."""
