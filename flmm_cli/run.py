"""`flmm run`: runs the simulated camera, the grounding node and the picking example until Ctrl-C."""

from __future__ import annotations

import argparse
import time

from flmm_cli.shared.options import add_node_options, node_arguments


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "run",
        help="run the simulated camera, the grounding node and the picking example until Ctrl-C",
        description='Runs until Ctrl-C. Send commands from another terminal: flmm ask "what is on the table?"',
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the scene that the camera shows (default: %(default)s)")
    add_node_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the nodes until Ctrl-C, or until one of them ends."""
    from flmm_ros.local_graph import require_free_domain
    from flmm_ros.node_processes import NODES, NodeProcesses, start_camera_and_node

    require_free_domain(*NODES)
    with NodeProcesses() as processes:
        start_camera_and_node(processes, node_arguments(args), args.seed)
        print('ask from another terminal: .venv/bin/flmm ask "what is on the table?"  (Ctrl-C ends)', flush=True)
        try:
            while True:
                processes.check()
                time.sleep(0.2)
        except KeyboardInterrupt:
            print("stopping ...", flush=True)
    return 0
