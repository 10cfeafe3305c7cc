"""`flmm info`: describes an LMM, heads or a SAM from its small files."""

from __future__ import annotations

import argparse
import re

from flmm_cli.shared.options import add_model_options, grounding_config
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
    parser.add_argument(
        "--image",
        metavar="WxH",
        help="size of an image in pixels, for instance 1920x1080: what it costs an LMM in tokens, maps and memory, and the"
        " image_tokens that keep full HD within 1.5 times VGA's",
    )
    add_model_options(parser, ("image_tokens",))


def run(args: argparse.Namespace) -> int:
    """Print each part."""
    config, image = grounding_config(args), None if args.image is None else image_size(args.image)

    from flmm_core.loading.model_info import model_info

    parts = (model_info(source, image=image, image_tokens=config.image_tokens) for source in args.model)
    for number, part in enumerate(part for found in parts for part in found):
        if number:
            print()
        print(printable(f"{part.kind} {part.source}"))
        width = max(map(len, part.facts))
        for name, value in part.facts.items():
            print(f"  {name.ljust(width)}  {printable(value)}")
    return 0


def image_size(text: str) -> tuple[int, int]:
    """Width and height of ``1920x1080``, pixels.

    Raises:
        ValueError: it is no size, or one that no camera has.
    """
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if found is None:
        raise ValueError(f"--image: expected width and height in pixels, for instance 1920x1080, got {text!r:.80}")
    return int(found[1]), int(found[2])
