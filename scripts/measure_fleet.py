"""Measures a fleet on this machine: replicas and batches side by side, and what the death of a replica costs its robots.

Fifty simulated robots give commands about scenes of their own, each the next one when the last is answered. One replica that
answers one by one, one that answers in batches, and two of these take turns, several rounds each, in one run; then a replica is
killed in the middle, and the books say whether every command got its one answer. The LMM alone is measured, too: what it writes
for the same commands one by one, and in batches::

    python scripts/measure_fleet.py --json docs/fleet.json
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

from flmm_bench.robots import Books, Task, drive
from flmm_cli.json_files import provenance, write_json
from flmm_cli.model_options import load_pipeline
from flmm_core.config import GroundingConfig
from flmm_fleet.deployment import start_fleet, stop_fleet
from flmm_fleet.settings import FleetSettings
from flmm_sim.renderer import TabletopRenderer

QUESTIONS = ("what is on the table?", "how many objects are there?", "what is at the left?")
PATIENCE = 300.0
BATCH = 8
SIZES: dict[str, dict[str, Any]] = {
    "1 replica, one by one": {"replicas": 1, "batch": 1},
    "1 replica, batches": {"replicas": 1, "batch": BATCH},
    "2 replicas, batches": {"replicas": 2, "batch": BATCH},
}
"""Of fleets; the first is what the others are compared with, and the last loses a replica."""


def main() -> None:
    """Measure, print, and write."""
    parser = argparse.ArgumentParser(description="Measures a fleet on this machine.")
    parser.add_argument("--robots", type=int, default=50)
    parser.add_argument("--commands", type=int, default=2, help="of each robot in a round")
    parser.add_argument("--rounds", type=int, default=2, help="of each size, in turn")
    parser.add_argument("--port", type=int, default=8011)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    args.arguments = ["--json", str(args.json)]
    config = GroundingConfig(cpu_threads=1)
    tasks = _tasks(args.robots, args.commands)
    rounds: dict[str, list[Books]] = {name: [] for name in SIZES}
    try:
        for number in range(args.rounds):
            for name, size in SIZES.items():
                address = start_fleet(config, load_pipeline, FleetSettings(**size, waiting=16, port=args.port))
                books = drive(address, tasks, patience=PATIENCE)
                rounds[name].append(books)
                print(f"round {number + 1}, {name}: {_said(books)}", flush=True)
        died = _with_a_death(address, tasks)
        print(f"one of 2 replicas killed: {_said(died)}")
    finally:
        stop_fleet()
    first, *others = SIZES
    ratios = {name: [books.rate / one.rate for one, books in zip(rounds[first], rounds[name], strict=True)] for name in others}
    ratios["the LMM alone, batches"] = _lmm_alone(config, [own[0] for own in tasks], args.rounds)
    for name, values in ratios.items():
        print(f"{name}: {', '.join(f'{value:.2f}' for value in values)} times the answers")
    if args.json:
        record: dict[str, Any] = {
            **provenance(args, config),
            "command": f"python scripts/measure_fleet.py --json {args.json}",
            "machine": {"cpus": os.cpu_count(), "processor": platform.machine()},
            "robots": args.robots,
            "commands": args.commands,
            "batch": BATCH,
            "ratios": ratios,
            "rounds": {name: [_figures(books) for books in each] for name, each in rounds.items()},
            "killed": _figures(died),
        }
        write_json(args.json, record)


def _tasks(robots: int, commands: int) -> list[list[Task]]:
    with TabletopRenderer() as renderer:
        scenes = [renderer.sample(seed).image for seed in range(robots)]
    return [[Task(scene, QUESTIONS[i % len(QUESTIONS)]) for i in range(commands)] for scene in scenes]


def _lmm_alone(config: GroundingConfig, tasks: list[Task], rounds: int) -> list[float]:
    """Time of the LMM's answers one by one, over their time in batches, round by round; images are encoded before."""
    lmm = load_pipeline(config).lmm
    images = [lmm.encode_image(Image.fromarray(task.image)) for task in tasks]
    layer_weights = torch.eye(lmm.shape.layers)[:1]

    def seconds(batch: int) -> float:
        began = time.perf_counter()
        for i in range(0, len(tasks), batch):
            pairs = zip(images[i : i + batch], tasks[i : i + batch], strict=True)
            lmm.generate_batch([lmm.question(image, task.words) for image, task in pairs], layer_weights=layer_weights)
        return time.perf_counter() - began

    seconds(BATCH)  # prompts' beginnings are kept from now on, for both
    return [seconds(1) / seconds(BATCH) for _ in range(rounds)]


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
