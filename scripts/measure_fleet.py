"""Measures a fleet on this machine: replicas and batches side by side, and a run in which a replica is killed.

Fifty simulated robots send commands about scenes of their own, each the next one when the last is answered. Fleets of one
replica without batches, one replica with batches, and two replicas with batches run in turn for several rounds. In a last run
a replica is killed, and it is counted whether every command got exactly one answer. The LMM alone is measured,
too, for the same commands one by one and in batches::

    python scripts/measure_fleet.py --json docs/fleet.json
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from PIL import Image

from flmm_bench.robots import FleetRun, Task, run_robots
from flmm_cli.shared.records import provenance, write_json
from flmm_core.config import GroundingConfig
from flmm_core.pipeline import GroundingPipeline
from flmm_fleet.fleet import Fleet
from flmm_fleet.settings import FleetSettings
from flmm_sim.renderer import TabletopRenderer

QUESTIONS = ("what is on the table?", "how many objects are there?", "what is at the left?")
TIMEOUT = 300.0
"""Seconds for which a robot tries to get an answer."""
BATCH = 8
SIZES: dict[str, dict[str, Any]] = {
    "1 replica, one by one": {"replicas": 1, "batch": 1},
    "1 replica, batches": {"replicas": 1, "batch": BATCH},
    "2 replicas, batches": {"replicas": 2, "batch": BATCH},
}
"""Fleets; the others are compared with the first."""


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
    rounds: dict[str, list[FleetRun]] = {name: [] for name in SIZES}
    for number in range(args.rounds):
        for name, size in SIZES.items():
            with Fleet(config, FleetSettings(**size, waiting=16, port=args.port)) as fleet:
                run = run_robots(fleet.address, tasks, timeout=TIMEOUT)
            rounds[name].append(run)
            print(f"round {number + 1}, {name}: {_line(run)}", flush=True)
    with Fleet(config, FleetSettings(replicas=2, batch=BATCH, waiting=16, port=args.port)) as fleet:
        killed = _with_a_kill(fleet.address, tasks)
    print(f"one of 2 replicas killed: {_line(killed)}")
    first, *others = SIZES
    ratios = {name: [run.rate / one.rate for one, run in zip(rounds[first], rounds[name], strict=True)] for name in others}
    ratios["the LMM alone, batches"] = _lmm_alone(config, [own[0] for own in tasks], args.rounds)
    for name, values in ratios.items():
        print(f"{name}: {', '.join(f'{value:.2f}' for value in values)} times the answers")
    if args.json:
        record: dict[str, Any] = {
            **provenance(args, config),
            "command": f"python scripts/measure_fleet.py --json {args.json}",
            "robots": args.robots,
            "commands": args.commands,
            "batch": BATCH,
            "ratios": ratios,
            "rounds": {name: [_figures(run) for run in each] for name, each in rounds.items()},
            "killed": _figures(killed),
        }
        write_json(args.json, record, "measure_fleet")


def _tasks(robots: int, commands: int) -> list[list[Task]]:
    with TabletopRenderer() as renderer:
        scenes = [renderer.sample(seed).image for seed in range(robots)]
    return [[Task(scene, QUESTIONS[i % len(QUESTIONS)]) for i in range(commands)] for scene in scenes]


def _lmm_alone(config: GroundingConfig, tasks: list[Task], rounds: int) -> list[float]:
    """Time of the LMM's answers one by one, divided by their time in batches, for each round; without encoding images."""
    lmm = GroundingPipeline.from_config(config).lmm
    images = [lmm.encode_image(Image.fromarray(task.image)) for task in tasks]
    layer_weights = torch.eye(lmm.shape.layers)[:1]

    def seconds(batch: int) -> float:
        began = time.perf_counter()
        for i in range(0, len(tasks), batch):
            pairs = zip(images[i : i + batch], tasks[i : i + batch], strict=True)
            lmm.generate_batch([lmm.question(image, task.words) for image, task in pairs], layer_weights=layer_weights)
        return time.perf_counter() - began

    seconds(BATCH)  # warm-up: prompt prefixes are cached from here on
    return [seconds(1) / seconds(BATCH) for _ in range(rounds)]


def _with_a_kill(address: str, tasks: list[list[Task]]) -> FleetRun:
    """A run in which a replica is killed after a third of the commands."""
    victim = int(httpx.get(f"{address}/describe", timeout=30).json()["process"])

    def kill(count: int) -> None:
        if count == sum(map(len, tasks)) // 3:
            os.kill(victim, signal.SIGKILL)

    return run_robots(address, tasks, timeout=TIMEOUT, on_outcome=kill)


def _figures(run: FleetRun) -> dict[str, Any]:
    waits = np.array([outcome.seconds for outcome in run.outcomes])
    return {
        "commands": run.commands,
        "answered": run.answered,
        "lost": run.lost,
        "duplicates": run.duplicates,
        "seconds": round(run.seconds, 2),
        "answers a second": round(run.rate, 3),
        "wait p50, s": round(float(np.quantile(waits, 0.5)), 2),
        "wait p95, s": round(float(np.quantile(waits, 0.95)), 2),
    }


def _line(run: FleetRun) -> str:
    return ", ".join(f"{name} {value}" for name, value in _figures(run).items())


if __name__ == "__main__":
    began = time.monotonic()
    main()
    print(f"{time.monotonic() - began:.0f} s")
