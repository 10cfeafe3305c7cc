"""`flmm run`."""

from __future__ import annotations

import argparse


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    subparsers.add_parser("run")


def run(args: argparse.Namespace) -> int:
    """Not there yet."""
    raise NotImplementedError
