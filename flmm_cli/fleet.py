"""`flmm fleet`: serves many robots over HTTP from several replicas of one model."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from dataclasses import fields

from flmm_cli.shared.options import add_model_options, grounding_config, require_counts
from flmm_fleet.settings import FleetSettings

_OPTIONS = {
    "replicas": "at the start, and at least",
    "most_replicas": "at most, while commands wait; no effect below --replicas",
    "waiting": "commands that may wait for each replica",
    "batch": "most waiting questions that a replica's LMM answers in one batch; 1: one by one",
    "gpus": "GPUs of each replica; 0.5: two share one",
    "command_deadline": "seconds for an answer once the model works on it; a replica whose model hangs is replaced; 0: none",
    "max_image_pixels": "larger images are refused before they are decoded",
    "host": "address to listen on; 0.0.0.0 for others",
    "port": "to listen on",
}
"""Meaning of each field of :class:`FleetSettings`."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "fleet",
        help="serve many robots from several replicas of one model",
        description="Starts replicas of a model on Ray Serve and serves HTTP until Ctrl-C or SIGTERM. A robot's node with the"
        " parameter `server` sends its images there and publishes the same answers as with a local model.",
    )
    for name, meaning in _OPTIONS.items():
        default = getattr(FleetSettings, name)
        option = f"--{name.replace('_', '-')}"
        parser.add_argument(option, type=type(default), default=default, help=f"{meaning} (default: %(default)s)")
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C or SIGTERM."""
    require_counts(args, "replicas", "most_replicas", "waiting", "batch", "max_image_pixels")
    config = grounding_config(args)
    settings = FleetSettings(**{entry.name: getattr(args, entry.name) for entry in fields(FleetSettings)})

    from flmm_fleet.fleet import Fleet

    print(f"starting {args.replicas} replicas ...", flush=True)
    with Fleet(config, settings) as fleet:
        # Service managers send SIGTERM, on which Ray's own handler would abort.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        print(f"ready: {fleet.address}", flush=True)
        threading.Event().wait()
    return 0
