"""Options of the commands that start a grounding node."""

from __future__ import annotations

import argparse


def add_node_options(parser: argparse.ArgumentParser) -> None:
    """Options that choose the model."""
    group = parser.add_argument_group("model")
    group.add_argument("--lmm", default="", help="LMM folder or name; default: the node's")
    group.add_argument("--heads", default="", help="grounding heads folder, file or name; default: the node's")
    group.add_argument("--sam", default="", help="SAM folder, file or name; default: the node's")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)")
    group.add_argument("--params-file", default="", help="YAML file with parameters of the node")


def node_arguments(args: argparse.Namespace) -> list[str]:
    """The options as ROS arguments of the node, to be placed after ``--ros-args``."""
    arguments = ["--params-file", args.params_file] if args.params_file else []
    for name in ("lmm", "heads", "sam"):
        if getattr(args, name):
            arguments += ["-p", f"{name}:={getattr(args, name)}"]
    if args.device != "auto":
        arguments += ["-p", f"device:={args.device}"]
    return arguments
