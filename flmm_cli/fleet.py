"""`flmm fleet`: serves many robots over HTTP from several replicas of one model."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from dataclasses import fields

from flmm_cli.shared.options import add_model_options, grounding_config, require_counts
from flmm_fleet.settings import FleetSettings


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "fleet",
        help="serve many robots from several replicas of one model",
        description="Starts replicas of a model on Ray Serve and serves HTTP until Ctrl-C or SIGTERM. A robot's node with the"
        " parameter `server` sends its images there and publishes the same answers as with a local model.",
    )
    parser.add_argument(
        "--replicas", type=int, default=FleetSettings.replicas, help="at the start, and at least (default: %(default)s)"
    )
    parser.add_argument(
        "--most-replicas",
        type=int,
        default=FleetSettings.most_replicas,
        help="at most, while commands wait (default: as --replicas)",
    )
    parser.add_argument(
        "--waiting",
        type=int,
        default=FleetSettings.waiting,
        help="commands that may wait for each replica (default: %(default)s)",
    )
    parser.add_argument(
        "--batch",
        type=int,
        default=FleetSettings.batch,
        help="most waiting questions that a replica's LMM answers in one batch; 1: one by one (default: %(default)s)",
    )
    parser.add_argument(
        "--gpus", type=float, default=FleetSettings.gpus, help="GPUs of each replica; 0.5: two share one (default: %(default)g)"
    )
    parser.add_argument(
        "--host", default=FleetSettings.host, help="address to listen on; 0.0.0.0 for others (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=FleetSettings.port, help="(default: %(default)s)")
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    require_counts(args, "replicas", "most_replicas", "waiting", "batch")
    config = grounding_config(args)

    from flmm_fleet.deployment import start_fleet, stop_fleet

    settings = FleetSettings(**{entry.name: getattr(args, entry.name) for entry in fields(FleetSettings)})
    print(f"starting {args.replicas} replicas ...", flush=True)
    try:
        address = start_fleet(config, settings)
        # Service managers send SIGTERM, on which Ray's own handler would abort.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        print(f"ready: {address}", flush=True)
        threading.Event().wait()
    finally:
        stop_fleet()
    return 0
