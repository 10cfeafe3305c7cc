"""Results of the benchmark."""

from __future__ import annotations

from dataclasses import dataclass, field

from flmm_bench.rows import Row


@dataclass(frozen=True)
class Rates:
    """Peak rates of the machine, from which lower bounds of times are computed."""

    flops: float
    """Floating-point operations a second in a large matrix product."""
    bytes: float
    """Bytes a second that a matrix-vector product reads."""
    dtype: str
    """Number format of both."""


@dataclass
class Findings:
    """Results of one run."""

    rates: Rates
    rows: list[Row] = field(default_factory=list)
    floors: dict[str, str] = field(default_factory=dict)
    """Lower bounds of times beside the measured ones, in words, by figure and model."""
    missing: list[str] = field(default_factory=list)
    """What was not measured, with the reason."""
