"""The stress test's figures as JSON and as a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from flmm_bench.machine import machine

if TYPE_CHECKING:
    from flmm_bench.stress.findings import Findings, NodeRun

_WARM_UP = 20
"""Seconds after a start whose memory does not count."""


def figures(found: Findings, command: str) -> dict[str, Any]:
    """The record that is written as JSON.

    Args:
        found: by the stress test.
        command: command line that measured it.
    """
    log = found.log
    busy = [late for late in found.lateness if late > 0]
    return {
        "command": command,
        "seconds": round(found.seconds, 1),
        "machine": machine(),
        "commands by topic": len(log.commands),
        "goals": len(log.goals),
        "replies": dict(sorted(log.statuses.items())),
        "goals cancelled": log.cancelled,
        "lost": log.lost,
        "duplicates": log.duplicates,
        "unmatched": log.unmatched,
        "pending when the node was killed": found.lost_in_kills,
        "malformed messages": found.malformed,
        "lifecycle cycles": found.cycles,
        "SIGKILL and restart": found.kills,
        "unreachable after a restart": found.unreachable,
        "clients that crashed during a goal": found.crashed_clients,
        "results for watch lists": log.watched,
        "results for watch lists, tracked": log.tracked,
        "timer lateness while a command runs, ms": _spread(busy),
        "timer lateness, all, ms": _spread([abs(late) for late in found.lateness]),
        "age of the image when its answer was sent, s": _spread(log.ages),
        "time from command to answer, s": _spread(log.seconds),
        "runs": [_run(run) for run in found.runs],
        "exit status": found.exit_status,
        "errors in the log": found.errors[:20],
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    if not values:
        return {}
    p50, p95, p99 = np.percentile(values, (50, 95, 99))
    return {
        "n": len(values),
        **{k: round(float(v), 3) for k, v in zip(("p50", "p95", "p99", "max"), (p50, p95, p99, max(values)), strict=True)},
    }


def _run(run: NodeRun) -> dict[str, float]:
    memory = np.array(run.memory[_WARM_UP:] or run.memory or [0.0]) / 1e6
    tenth = max(1, len(memory) // 10)
    first, last = float(np.median(memory[: 2 * tenth])), float(np.median(memory[-2 * tenth :]))
    return {
        "seconds": round(run.seconds, 1),
        "memory at the start, MB": round(first, 1),
        "memory at the end, MB": round(last, 1),
        "peak memory, MB": round(float(memory.max()), 1),
        "CPU cores used": round(run.cpu_seconds / max(run.seconds, 1e-9), 2),
    }


def table(record: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    rows = [("Figure", "Value"), ("---", "---")]
    for name, value in record.items():
        if name in ("written_by", "command", "machine", "runs", "errors in the log"):
            continue
        if isinstance(value, dict):
            value = ", ".join(f"{key} {part:,}" for key, part in value.items()) or "none"
        rows.append((name, f"{value:,}" if isinstance(value, int | float) else str(value)))
    for number, run in enumerate(record["runs"], start=1):
        rows.append((f"run {number} of the node", ", ".join(f"{key} {value:,}" for key, value in run.items())))
    rows.append(("errors in the log", str(len(record["errors in the log"]))))
    return "\n".join(f"| {name} | {value} |" for name, value in rows)


def problems(record: dict[str, Any]) -> list[str]:
    """What must not happen and did, one line each; empty if the test passed."""
    found = [f"{name}: {record[name]}" for name in ("lost", "duplicates", "unmatched") if record[name]]
    if record["exit status"] != 0:
        found.append(f"exit status: {record['exit status']}")
    return found + record["errors in the log"]
