"""`flmm ask`."""

from __future__ import annotations

import argparse


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    subparsers.add_parser("ask")


def run(args: argparse.Namespace) -> int:
    """Not there yet."""
    raise NotImplementedError
