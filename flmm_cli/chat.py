"""`flmm chat`: questions about one image in a terminal, answered as the words come, with a picture of the masks for each."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from flmm_cli.answer_lines import phrase_lines
from flmm_cli.model_options import add_model_options, grounding_config, load_pipeline
from flmm_core.plain_text import printable

if TYPE_CHECKING:
    from flmm_core.image_handle import ImageHandle
    from flmm_core.pipeline import GroundingPipeline
    from flmm_core.types import GroundedAnswer

HELP = "a question; or: /refer the mug, the lemon; /help; /quit"


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "chat",
        help="ask about an image file again and again",
        description="Reads questions line by line, prints each answer as its words come and what it points at, and writes a"
        " picture of the masks. `/refer the mug, the lemon` grounds given phrases; `/quit` or the end of the input ends it."
        " Each question stands alone.",
    )
    parser.add_argument("image", type=Path, help="image file")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("chat_output"),
        help="folder of the pictures, one for each answer (default: %(default)s)",
    )
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Answer until the input ends."""
    config = grounding_config(args)

    from PIL import Image

    from flmm_core.drawing.overlay import draw_overlay
    from flmm_core.errors import CommandError, MemoryFullError
    from flmm_core.image_files import read_image

    image = read_image(args.image)
    pipeline = load_pipeline(config)
    handle = pipeline.encode(image)
    args.out.mkdir(parents=True, exist_ok=True)
    print(HELP, flush=True)
    answers = 0
    while True:
        if sys.stdin.isatty():
            print("> ", end="", flush=True)
        line = sys.stdin.readline()
        if not line or line.strip() == "/quit":
            return 0
        if not (words := line.strip()):
            continue
        if words == "/help" or (words.startswith("/") and not words.startswith("/refer ")):
            print(HELP, flush=True)
            continue
        try:
            answer = _answered(pipeline, handle, words)
        except (CommandError, MemoryFullError) as error:
            print(f"no answer: {error}", flush=True)
            continue
        answers += 1
        path = args.out / f"{answers:03d}.png"
        Image.fromarray(draw_overlay(image, answer, command=words)).save(path)
        print("\n".join(phrase_lines(answer)))
        print(f"  {path}", flush=True)


def _answered(pipeline: GroundingPipeline, image: ImageHandle, words: str) -> GroundedAnswer:
    """Answer a line; the words are printed as they come."""
    if words.startswith("/refer "):
        phrases = [phrase for part in words.removeprefix("/refer ").split(",") if (phrase := part.strip())]
        return pipeline.refer(image, phrases or [","])

    from flmm_core.watcher import Watcher

    class Printer(Watcher):
        shown = ""

        def on_text(self, text: str) -> None:
            text = printable(text)
            print(text[len(self.shown) :] if text.startswith(self.shown) else f"\n{text}", end="", flush=True)
            self.shown = text

    printer = Printer()
    answer = pipeline.chat(image, words, watch=printer)
    whole = printable(answer.text)
    print("" if whole == printer.shown else f"\n{whole}", flush=True)
    return answer
