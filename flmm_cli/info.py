"""`flmm info`: describes an LMM, heads or a SAM from its small files."""

from __future__ import annotations

import argparse

from flmm_core.common.plain_text import printable


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "info",
        help="describe an LMM, heads or a SAM",
        description="Prints sizes, channels, prompt, grid and memory of an LMM, heads or a SAM, and which heads belong to which"
        " LMM and SAM. Reads only configs and the headers of weights.",
    )
    parser.add_argument(
        "model", nargs="+", help="LMM, heads or SAM: a folder, a .pth file, a Hugging Face name, or a registered model"
    )


def run(args: argparse.Namespace) -> int:
    """Print each part."""
    from flmm_core.loading.model_info import model_info

    for number, part in enumerate(part for source in args.model for part in model_info(source)):
        if number:
            print()
        print(printable(f"{part.kind} {part.source}"))
        width = max(map(len, part.facts))
        for name, value in part.facts.items():
            print(f"  {name.ljust(width)}  {printable(value)}")
    return 0
