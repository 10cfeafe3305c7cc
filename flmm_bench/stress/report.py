"""The stress test's figures, for people and programs."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flmm_bench.machine import processor

if TYPE_CHECKING:
    from flmm_bench.stress.run import Findings, Life

_SETTLED = 20
"""Seconds after a start that count as warming up."""


def figures(found: Findings, command: str) -> dict[str, Any]:
    """What is written as JSON, with the command that measured it."""
    books = found.books
    working = [late for late in found.late if late > 0]
    return {
        "command": command,
        "seconds": round(found.seconds, 1),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "python": platform.python_version()},
        "commands by topic": len(books.commands),
        "goals": len(books.goals),
        "replies": dict(sorted(books.statuses.items())),
        "goals rejected": books.rejected,
        "goals cancelled": books.cancelled,
        "without a reply": books.lost,
        "with more than one": books.doubled,
        "replies to nothing": books.strays,
        "gone with a killed node": found.killed,
        "malformed messages": found.fuzzed,
        "lifecycle cycles": found.cycles,
        "kill -9 and new start": found.kills,
        "of them deaf, started once more": found.deaf,
        "clients that died with a goal": found.leavers,
        "results for watch lists": books.watched,
        "of them tracked": books.tracked,
        "timer lateness, command in work, ms": _spread(working),
        "timer lateness, all, ms": _spread([abs(late) for late in found.late]),
        "age of the image when its answer was sent, s": _spread(books.ages),
        "time from command to answer, s": _spread(books.seconds),
        "lives": [_life(life) for life in found.lives],
        "exit status": found.status,
        "faults in the log": found.faults[:20],
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    p50, p95, p99 = np.percentile(values, (50, 95, 99))
    return {
        "n": len(values),
        **{k: round(float(v), 3) for k, v in zip(("p50", "p95", "p99", "max"), (p50, p95, p99, max(values)), strict=True)},
    }


def _life(life: Life) -> dict[str, float]:
    memory = np.array(life.memory[_SETTLED:] or life.memory or [0.0]) / 1e6
    tenth = max(1, len(memory) // 10)
    first, last = float(np.median(memory[: 2 * tenth])), float(np.median(memory[-2 * tenth :]))
    return {
        "seconds": round(life.seconds, 1),
        "memory at first, MB": round(first, 1),
        "memory in the end, MB": round(last, 1),
        "most, MB": round(float(memory.max()), 1),
        "processors": round(life.busy / max(life.seconds, 1e-9), 2),
    }


def table(record: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    rows = [("Figure", "Value"), ("---", "---")]
    for name, value in record.items():
        if name in ("command", "machine", "lives", "faults in the log"):
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{key} {part:,}" for key, part in value.items()) or "none"
        rows.append((name, f"{value:,}" if isinstance(value, int | float) else str(value)))
    for number, life in enumerate(record["lives"], start=1):
        rows.append((f"life {number} of the node", ", ".join(f"{key} {value:,}" for key, value in life.items())))
    rows.append(("faults in the log", str(len(record["faults in the log"]))))
    return "\n".join(f"| {name} | {value} |" for name, value in rows)


def fine(record: dict[str, Any]) -> list[str]:
    """What is not as it should be, in words; empty if all is."""
    problems = [
        f"{name}: {record[name]}" for name in ("without a reply", "with more than one", "replies to nothing") if record[name]
    ]
    if record["exit status"] != 0:
        problems.append(f"exit status: {record['exit status']}")
    problems += record["faults in the log"]
    return problems
