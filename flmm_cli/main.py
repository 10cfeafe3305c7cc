"""Entry point of `flmm`: finds the command and turns errors into one clear line.

It knows no command's options. A command is a module of this package with ``add_parser(subparsers)`` and ``run(args)``; commands
that are nearly equal share a module. To add a command, add its module to :data:`MODULES`. Modules import what is slow to load
(PyTorch, ROS, MuJoCo) inside ``run``, so that ``flmm --help`` answers at once.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence

from flmm_cli.shared.outputs import SOURCES, check_outputs, standard_output_kept
from flmm_core.common.plain_text import is_utf8, one_line

MODULES = (
    "ask",
    "demo",
    "run",
    "ground",
    "chat",
    "scenes",
    "data",
    "train",
    "eval",
    "attention",
    "verify_frozen",
    "info",
    "calibrate",
    "convert",
    "export",
    "bag",
    "fleet",
    "bench",
    "soak",
)
"""Modules of this package, in the order in which `flmm --help` lists their commands."""


_EXTRAS = {
    "mujoco": "sim",
    "OpenGL": "sim",
    "scipy": "sim",
    "pycocotools": "train",
    "accelerate": "train",
    "pycocoevalcap": "eval",
    "onnx": "export",
    "mcap": "bag",
    "lz4": "bag",
    "zstandard": "bag",
    "gradio": "web",
    "ray": "fleet",
}
"""Packages that only some commands need, and the extra of flmm_ros that installs each."""


def declare(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> dict[str, Callable[..., int | None]]:
    """Declare every command.

    Returns:
        The function that runs each command, by the command's name.
    """
    runs: dict[str, Callable[..., int | None]] = {}
    for name in MODULES:
        module = importlib.import_module(f"flmm_cli.{name}")
        module.add_parser(subparsers)
        runs |= {command: module.run for command in subparsers.choices if command not in runs}
    return runs


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0 if it worked, 1 if it failed, 2 for wrong arguments, 130 after Ctrl-C.
    """
    parser = argparse.ArgumentParser(prog="flmm", description="Answers about images, with a mask for each object named.")
    parser.add_argument("--traceback", action="store_true", help="show the traceback of an error")
    subparsers = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)
    runs = declare(subparsers)
    arguments = sys.argv[1:] if argv is None else [*map(str, argv)]
    _accept_any_bytes()
    args = parser.parse_args(arguments, argparse.Namespace(arguments=arguments))
    try:
        _require_unicode(args)
        check_outputs(args)
        with standard_output_kept(args):
            return runs[args.command](args) or 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of the output has ended, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, RuntimeError, ImportError, MemoryError) as error:
        if args.traceback:
            raise
        print(f"flmm {args.command}: {_message(error)}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1


def _accept_any_bytes() -> None:
    """Let file names and lines of another encoding be read and printed; what they stand for is checked where it is used."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace")):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=errors)


def _require_unicode(args: argparse.Namespace) -> None:
    """Refuse words that are not Unicode, such as those of a Latin-1 terminal; names of files may be in any encoding.

    Raises:
        ValueError: names the argument.
    """
    for name, value in vars(args).items():
        for text in value if isinstance(value, list | tuple) else (value,):
            if isinstance(text, str) and name not in ("arguments", *SOURCES) and not is_utf8(text):
                raise ValueError(f"{name.replace('_', '-')}: expected UTF-8, got bytes of another encoding in {text!r:.80}")


def _message(error: Exception) -> str:
    missing = (error.name or "").split(".")[0] if isinstance(error, ModuleNotFoundError) else ""
    if missing in _EXTRAS:
        return f"{missing} is not installed: expected flmm_ros with its extra [{_EXTRAS[missing]}]"
    if isinstance(error, MemoryError):
        return f"expected enough free memory, got too little ({one_line(error)})"
    return one_line(error)
