"""`flmm chat`: a conversation about one image, in a terminal or in the browser."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from flmm_cli.shared.answer_lines import label_marks, phrase_lines
from flmm_cli.shared.options import add_model_options, grounding_config
from flmm_cli.shared.outputs import add_output
from flmm_core.common.plain_text import one_line, printable
from flmm_core.config import DEFAULT_MODEL

if TYPE_CHECKING:
    import numpy as np

    from flmm_core.chat.conversation import Conversation, LabelledAnswer
    from flmm_core.pipeline import GroundingPipeline
    from flmm_core.requests.image_handle import ImageHandle

HELP = (
    "a question, in which [2] stands for object 2; or: /refer the mug, the lemon; /look QUESTION, for a closer look first;"
    " /objects; /help; /quit"
)
REMEMBERED = 8
"""Earlier questions in the prompt of an LMM that was not trained on single questions."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "chat",
        help="have a conversation about an image file, in a terminal or in the browser",
        description="Reads questions line by line, prints each answer as it is generated, its boxes and scores, and writes an"
        " overlay of its masks. Objects keep their labels through the conversation: `what is left of [2]?`. `/refer the mug,"
        " the lemon` grounds given phrases, `/look QUESTION` answers after a closer look at the part that matters, `/objects`"
        " lists the labels; `/quit` or the end of the input ends it. With --web a page does the same.",
    )
    parser.add_argument("image", type=Path, help="image file")
    add_output(
        parser,
        "--out",
        output={
            "folder": True,
            "entries": lambda args, folder: [path for path in folder.glob("*.png") if path.stem.isdigit()],
            "used": lambda args: not args.web,
        },
        default=Path("chat_output"),
        help="folder of the overlays, one for each answer (default: %(default)s)",
    )
    parser.add_argument(
        "--remember",
        type=int,
        metavar="N",
        help=f"earlier questions and answers in the prompt (default: {REMEMBERED}; 0 for {DEFAULT_MODEL}, which was trained on"
        " single questions)",
    )
    parser.add_argument("--web", action="store_true", help="serve a page on this machine instead of reading lines")
    parser.add_argument("--port", type=int, default=7860, help="of the page (default: %(default)s)")
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Answer until the input ends, or serve the page until Ctrl-C."""
    config = grounding_config(args)

    from flmm_core.images.files import read_image
    from flmm_core.pipeline import GroundingPipeline

    image = read_image(args.image)
    remember = args.remember
    if remember is None:
        remember = 0 if config.lmm == DEFAULT_MODEL else REMEMBERED
    if remember < 0:
        raise ValueError(f"--remember: expected 0 or more, got {remember}")
    if args.web:
        from flmm_cli.chat_page import serve_page

        serve_page(GroundingPipeline.from_config(config), image, remember=remember, port=args.port)
        return 0
    return _read_lines(GroundingPipeline.from_config(config), image, remember, args.out)


def _read_lines(pipeline: GroundingPipeline, image: np.ndarray, remember: int, out: Path) -> int:
    from flmm_core.chat.conversation import Conversation
    from flmm_core.drawing.overlay import draw_overlay
    from flmm_core.errors import CommandError, MemoryFullError
    from flmm_core.images.files import write_image

    handle = pipeline.encode(image)
    conversation = Conversation(pipeline, handle, remember=remember)
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
        if words == "/objects":
            objects = [f"  [{label}] {printable(phrase.text)}" for label, phrase in conversation.objects.items()]
            print("\n".join(objects) or "  none yet", flush=True)
            continue
        if words.startswith("/") and not words.startswith(("/refer ", "/look ")):
            print(HELP, flush=True)
            continue
        try:
            said = _answered(pipeline, handle, conversation, words)
        except (CommandError, MemoryFullError) as error:
            print(f"no answer: {one_line(error)}", flush=True)
            continue
        answers += 1
        path = out / f"{answers:03d}.png"
        write_image(path, draw_overlay(image, said.answer, command=words, details=label_marks(said.labels)), "chat")
        print("\n".join(phrase_lines(said.answer, said.labels)))
        print(f"  {path}", flush=True)


def _answered(pipeline: GroundingPipeline, image: ImageHandle, conversation: Conversation, words: str) -> LabelledAnswer:
    """Answer a line; the text is printed as it is generated."""
    if words.startswith("/refer "):
        phrases = [phrase for part in words.removeprefix("/refer ").split(",") if (phrase := part.strip())]
        return conversation.refer(phrases or [","])
    if words.startswith("/look "):
        from flmm_core.chat.closer_look import look_closer

        look = look_closer(pipeline, image, conversation.named(words.removeprefix("/look ")))
        seen = f"closer look at: {printable(look.phrase.text)} {look.box}" if look.phrase else "no part found for a closer look"
        print(f"  {seen}\n{printable(look.answer.text)}", flush=True)
        return conversation.labelled(look.answer)

    from flmm_core.requests.callbacks import Callbacks

    class Printer(Callbacks):
        shown = ""

        def on_text(self, text: str) -> None:
            text = printable(text)
            print(text[len(self.shown) :] if text.startswith(self.shown) else f"\n{text}", end="", flush=True)
            self.shown = text

    printer = Printer()
    said = conversation.ask(words, callbacks=printer)
    whole = printable(said.answer.text)
    print("" if whole == printer.shown else f"\n{whole}", flush=True)
    return said
