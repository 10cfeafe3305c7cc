"""Options that several commands have: the model and how it grounds, the nodes' model, counts."""

from __future__ import annotations

import argparse
from collections.abc import Collection

from flmm_core.config import GroundingConfig, Tunable, tunables


def add_model_options(parser: argparse.ArgumentParser, names: Collection[str] = ()) -> None:
    """Add one option for each entry of :class:`~flmm_core.config.GroundingConfig`.

    Args:
        parser: of a command.
        names: entries that the command uses; empty for all.
    """
    group = parser.add_argument_group("model")
    for tunable in tunables():
        if names and tunable.name not in names:
            continue
        option = "--" + tunable.name.replace("_", "-")
        if tunable.type is bool:
            group.add_argument(option, action=argparse.BooleanOptionalAction, default=tunable.default, help=_help(tunable))
        else:
            metavar = {str: "TEXT", int: "N", float: "X"}[tunable.type]
            group.add_argument(option, type=tunable.type, default=tunable.default, metavar=metavar, help=_help(tunable))


def grounding_config(args: argparse.Namespace) -> GroundingConfig:
    """The configuration that the options of :func:`add_model_options` give; entries without an option have their defaults.

    Raises:
        ValueError: a value is out of range.
    """
    return GroundingConfig(
        **{tunable.name: getattr(args, tunable.name) for tunable in tunables() if hasattr(args, tunable.name)}
    )


def model_names(config: GroundingConfig) -> dict[str, str]:
    """LMM, heads and SAM as the user named them."""
    return {part: getattr(config, part) for part in ("lmm", "heads", "sam")}


def _help(tunable: Tunable) -> str:
    allowed = ""
    if tunable.choices:
        allowed = f"; one of {', '.join(tunable.choices)}"
    elif tunable.minimum is not None and tunable.maximum is not None:
        allowed = f"; {tunable.minimum:g} to {tunable.maximum:g}"
    default = f" (default: {'empty' if tunable.default == '' else tunable.default}{allowed})"
    return tunable.description.replace("%", "%%") + default


def add_node_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a command that starts a grounding node."""
    group = parser.add_argument_group("model")
    group.add_argument("--lmm", default="", help="LMM: a folder or a name (default: that of the node)")
    group.add_argument("--heads", default="", help="grounding heads: a folder, a file or a name (default: those of the node)")
    group.add_argument("--sam", default="", help="SAM: a folder, a file or a name (default: that of the node)")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)")
    group.add_argument("--params-file", default="", help="YAML file with parameters of the node")


def node_arguments(args: argparse.Namespace) -> list[str]:
    """The options of :func:`add_node_options` as the node's arguments after ``--ros-args``."""
    arguments = ["--params-file", args.params_file] if args.params_file else []
    for name in ("lmm", "heads", "sam"):
        if getattr(args, name):
            arguments += ["-p", f"{name}:={getattr(args, name)}"]
    if args.device != "auto":
        arguments += ["-p", f"device:={args.device}"]
    return arguments


def require_counts(args: argparse.Namespace, *names: str) -> None:
    """Refuse counts below 1; None, the value of a count that was not given, is allowed.

    Args:
        args: the parsed options.
        names: of its attributes.

    Raises:
        ValueError: names the option.
    """
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least 1, got {value}")
