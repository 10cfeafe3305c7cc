"""Measures a fleet on this machine: one replica and two side by side, and what the death of one costs its robots.

Fifty simulated robots give commands about scenes of their own, each the next one when the last is answered. One replica and two
take turns, several rounds each, in one run; then a replica is killed in the middle, and the books say whether every command got
its one answer::

    python scripts/measure_fleet.py --json docs/fleet.json
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import statistics
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from flmm_bench.robots import Books, Task, drive
from flmm_cli.json_files import provenance, write_json
from flmm_cli.model_options import load_pipeline
from flmm_core.config import GroundingConfig
from flmm_fleet.deployment import start_fleet, stop_fleet
from flmm_fleet.settings import FleetSettings
from flmm_sim.renderer import TabletopRenderer

QUESTIONS = ("what is on the table?", "how many objects are there?", "what is at the left?")
PATIENCE = 300.0


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description="Measures a fleet of two replicas on this machine.")
    parser.add_argument("--robots", type=int, default=50)
    parser.add_argument("--commands", type=int, default=2, help="of each robot in a round")
    parser.add_argument("--rounds", type=int, default=2, help="of one replica and of two, in turn")
    parser.add_argument("--port", type=int, default=8011)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    args.arguments = ["--json", str(args.json)]
    config = GroundingConfig(cpu_threads=1)
    tasks = _tasks(args.robots, args.commands)
    rounds: dict[int, list[Books]] = {1: [], 2: []}
    try:
        for number in range(args.rounds):
            for replicas in rounds:
                address = _start(config, replicas, args.port)
                books = drive(address, tasks, patience=PATIENCE)
                rounds[replicas].append(books)
                print(f"round {number + 1}, {replicas} replicas: {_said(books)}", flush=True)
        died = _with_a_death(address, tasks)
        print(f"one of 2 replicas killed: {_said(died)}")
    finally:
        stop_fleet()
    rates = {str(replicas): [books.rate for books in each] for replicas, each in rounds.items()}
    ratios = [two / one for one, two in zip(rates["1"], rates["2"], strict=True)]
    print(f"two replicas answer {statistics.mean(ratios):.2f} times as many ({', '.join(f'{r:.2f}' for r in ratios)})")
    if args.json:
        record: dict[str, Any] = {
            **provenance(args, config),
            "command": f"python scripts/measure_fleet.py --json {args.json}",
            "machine": {"cpus": os.cpu_count(), "processor": platform.machine()},
            "robots": args.robots,
            "commands": args.commands,
            "ratios": ratios,
            "rounds": {str(replicas): [_figures(books) for books in each] for replicas, each in rounds.items()},
            "killed": _figures(died),
        }
        write_json(args.json, record)


def _tasks(robots: int, commands: int) -> list[list[Task]]:
    with TabletopRenderer() as renderer:
        scenes = [renderer.sample(seed).image for seed in range(robots)]
    return [[Task(scene, QUESTIONS[i % len(QUESTIONS)]) for i in range(commands)] for scene in scenes]


def _start(config: GroundingConfig, replicas: int, port: int) -> str:
    return start_fleet(config, load_pipeline, FleetSettings(replicas=replicas, waiting=16, port=port))


def _with_a_death(address: str, tasks: list[list[Task]]) -> Books:
    victim = int(httpx.get(f"{address}/describe", timeout=30).json()["process"])

    def kill(count: int) -> None:
        if count == sum(map(len, tasks)) // 3:
            os.kill(victim, signal.SIGKILL)

    return drive(address, tasks, patience=PATIENCE, on_outcome=kill)


def _figures(books: Books) -> dict[str, Any]:
    waits = np.array([outcome.seconds for outcome in books.outcomes])
    return {
        "given": books.given,
        "answered": books.answered,
        "lost": books.lost,
        "doubled": books.doubled,
        "seconds": round(books.seconds, 2),
        "answers a second": round(books.rate, 3),
        "wait p50, s": round(float(np.quantile(waits, 0.5)), 2),
        "wait p95, s": round(float(np.quantile(waits, 0.95)), 2),
    }


def _said(books: Books) -> str:
    return ", ".join(f"{name} {value}" for name, value in _figures(books).items())


if __name__ == "__main__":
    began = time.monotonic()
    main()
    print(f"{time.monotonic() - began:.0f} s")
