"""`flmm verify-frozen`: verifies that an LMM keeps its weights and greedy answers, in the number format that serves."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from flmm_cli.shared.options import add_model_options, grounding_config
from flmm_cli.shared.outputs import add_output
from flmm_cli.shared.records import provenance, write_json
from flmm_cli.shared.table import format_table

if TYPE_CHECKING:
    from PIL import Image

    from flmm_core.verification.frozen_report import FrozenReport

QUESTIONS = (
    "What is in the image?",
    "Describe the image.",
    "Please give me a description of the image.",
    "What is on the table?",
    "How many things are there?",
    "What is the largest thing?",
    "What colour is the thing on the left?",
    "Where is the red one?",
    "Is there a mug?",
    "What is left of the bowl?",
    "What is next to the can?",
    "Which things are round?",
    "Pick up the lemon, please.",
    "Put the cube into the bowl.",
    "Is anything blue?",
    "What would you use to drink?",
    "Name everything that you see, from left to right.",
    "What is in the background?",
    "Qu'est-ce que c'est ?",
    "ok",
)
SIZES = {"landscape": (640, 480), "portrait": (333, 501), "square": (419, 419)}
"""Width and height of the images that are drawn if none are given."""
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "verify-frozen",
        help="verify that an LMM keeps its weights and its greedy answers",
        description="Asks an LMM questions about images, first by `model.generate` alone and then as it serves, with the image"
        " prefix computed for each question and with it cached. Compares the token ids, and checksums of all weights before"
        " and after. In bfloat16 and float16, another token is accepted where its score is within rounding of the best; the"
        " table reports it. Exit status 1 if anything differs.",
    )
    parser.add_argument("lmm", metavar="LMM", help="a folder, a Hugging Face name, or the name of a registered model")
    parser.add_argument("--questions", type=Path, metavar="FILE", help="one question in each line (default: 20 built-in ones)")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of image files (default: three drawn ones)")
    add_output(parser, "--json", metavar="FILE", help="write the comparison to this file")
    add_model_options(parser, ("device", "dtype", "quantization", "image_tokens", "max_new_tokens", "cpu_threads"))


def run(args: argparse.Namespace) -> int:
    """Compare, print, and write what was asked for."""
    config = grounding_config(args)
    questions = read_questions(args.questions) if args.questions else QUESTIONS
    images = read_images(args.images) if args.images else drawn_images()

    import torch

    from flmm_core.common.devices import resolve_device
    from flmm_core.loading import checkpoints
    from flmm_core.verification.frozen_report import verify_frozen

    if config.cpu_threads:
        torch.set_num_threads(config.cpu_threads)
    context = provenance(args, config, ("lmm",))
    device, dtype = resolve_device(config)
    loaded = checkpoints.load_plain_lmm(
        config.lmm,
        device=device,
        dtype=dtype,
        quantization=config.quantization,
        image_tokens=config.image_tokens,
        spread=config.device == "auto",
    )
    report = verify_frozen(loaded, images, questions, max_new_tokens=config.max_new_tokens)
    format_name = str(dtype).removeprefix("torch.")
    format_name += "" if config.quantization == "none" else f", {config.quantization}"
    format_name += f", at most {config.image_tokens} tokens an image" if config.image_tokens else ""
    print(_table(report))
    print(f"\n{config.lmm} in {format_name} on {device}: {'frozen' if report.frozen else 'NOT frozen'}\n{report.summary()}")
    if args.json:
        sizes = {name: list(image.size) for name, image in images.items()}
        settings = {"dtype": format_name, "device": str(device), "max_new_tokens": config.max_new_tokens, "images": sizes}
        write_json(args.json, {**context, **settings, **report.record()}, args.command)
        print(f"report: {args.json}")
    return 0 if report.frozen else 1


def read_questions(path: Path) -> tuple[str, ...]:
    """The lines of a UTF-8 file that are not blank.

    Raises:
        ValueError: there are none.
    """
    if not path.is_file():
        raise ValueError(f"--questions: expected a file, got {path}")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"--questions: expected UTF-8 in {path}, got another encoding ({error.reason})") from error
    questions = tuple(line.strip() for line in lines if line.strip())
    if not questions:
        raise ValueError(f"--questions: expected a question in each line of {path}, got none")
    return questions


def read_images(folder: Path) -> dict[str, Image.Image]:
    """Image files of a folder, by name.

    Raises:
        ValueError: it has none, or one cannot be read.
    """
    from PIL import Image

    from flmm_core.images.files import read_image

    if not folder.is_dir():
        raise ValueError(f"--images: expected a folder, got {folder}")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise ValueError(f"--images: expected files of {', '.join(_SUFFIXES)} in {folder}, got none")
    return {path.name: Image.fromarray(read_image(path)) for path in paths}


def drawn_images() -> dict[str, Image.Image]:
    """RGB images of random coloured shapes, the same each time, by name."""
    import random

    from PIL import Image, ImageDraw

    images = {}
    for seed, (name, (width, height)) in enumerate(SIZES.items()):
        chance = random.Random(seed)

        def colour(chance: random.Random = chance) -> tuple[int, int, int]:
            return chance.randrange(256), chance.randrange(256), chance.randrange(256)

        image = Image.new("RGB", (width, height), colour())
        draw = ImageDraw.Draw(image)
        for _ in range(12):
            side = chance.randrange(20, width // 3)
            left, top = chance.randrange(width - side), chance.randrange(height - side)
            shape = chance.choice((draw.rectangle, draw.ellipse))
            shape((left, top, left + side, top + side), fill=colour())
        images[name] = image
    return images


def _table(report: FrozenReport) -> str:
    ways = list(report.answers[0].outcomes)
    rows = [
        [answer.image, answer.question, str(answer.tokens), *(str(answer.outcomes[way]) for way in ways)]
        for answer in report.answers
    ]
    return format_table(["image", "question", "tokens", *ways], rows, width=shutil.get_terminal_size((120, 0)).columns)
