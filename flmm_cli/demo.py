"""`flmm demo`: shows the whole system at work on a simulated camera."""

from __future__ import annotations

import argparse
import os
import shutil
import time
from pathlib import Path
from textwrap import indent

from flmm_cli.shared.options import add_node_options, node_arguments, require_counts
from flmm_cli.shared.outputs import add_output
from flmm_cli.shared.records import write_json
from flmm_cli.shared.table import format_table
from flmm_core.common.output_files import is_marked
from flmm_core.common.plain_text import printable


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "demo",
        help="send a dozen commands to a simulated robot, over ROS",
        description="Starts a simulated robot camera and the grounding node as separate processes, sends commands of every"
        " kind, prints the replies, and draws them. Exit status 0 if every command was answered.",
    )
    parser.add_argument("--count", type=int, default=13, help="commands (default: %(default)s)")
    parser.add_argument("--scenes", type=int, default=6, help="different scenes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=9, help="seed of scenes and questions (default: %(default)s)")
    add_output(
        parser,
        "--out",
        output={"folder": True, "entries": _earlier, "own": _own},
        default=Path("demo_output"),
        help="folder for images; those of an earlier demo are removed, other files stay (default: %(default)s)",
    )
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for a reply (default: %(default)g)")
    parser.add_argument(
        "--start-timeout", type=float, default=120.0, help="seconds for camera and model to start (default: %(default)g)"
    )
    add_node_options(parser)


def _earlier(_: argparse.Namespace, folder: Path) -> list[Path]:
    from flmm_demo.files import earlier_files

    return earlier_files(folder)


def _own(file: Path, command: str) -> bool:
    """Whether a file is an earlier demo's: it, or one beside it, carries the mark."""
    from flmm_demo.files import earlier_files

    return any(is_marked(one, command) for one in earlier_files(file.parent))


def run(args: argparse.Namespace) -> int:
    """Run, print, and draw; exit status 0 if every command was answered."""
    require_counts(args, "count", "scenes")

    from flmm_ros.local_graph import local_graph, require_free_domain
    from flmm_ros.node_processes import NODES

    os.environ.update(local_graph())
    require_free_domain(*NODES)

    from flmm_demo import files, report
    from flmm_demo.commands import plan
    from flmm_demo.run import run_demo

    args.out.mkdir(parents=True, exist_ok=True)
    files.remove_earlier(args.out)
    print(f"rendering {args.scenes} scenes ...", flush=True)
    commands = plan(args.count, args.scenes, args.seed)
    domain = os.environ["ROS_DOMAIN_ID"]
    print(f"starting the camera and the grounding node in ROS domain {domain} (logs in {args.out}) ...", flush=True)
    began = time.monotonic()
    outcomes = run_demo(
        commands,
        args.out,
        node_arguments(args),
        timeout=args.timeout,
        start_timeout=args.start_timeout,
        on_started=lambda seconds: print(f"both are ready after {seconds:.1f} s", flush=True),
        on_outcome=lambda one: print(
            f"  {printable(one.command.text)}\n{indent(report.answer_text(one), ' ' * 4)}", flush=True
        ),
    )
    report.draw(outcomes, args.out)
    write_json(args.out / files.ANSWERS, {"answers": [report.record(outcome) for outcome in outcomes]}, args.command)
    width = max(shutil.get_terminal_size((180, 24)).columns, 140)
    print(f"\n{format_table(report.table_headers(), report.table_rows(outcomes), width=width)}\n\n{report.summary(outcomes)}")
    images = f"{args.out / files.CONTACT_SHEET}, {files.LEAD} and one for each command beside it"
    print(f"{time.monotonic() - began:.0f} s; images: {images}")
    return 0 if len(outcomes) == args.count and all(outcome.answered for outcome in outcomes) else 1
