"""`flmm ground`: answers about an image file, with a mask for each object that the answer names."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from flmm_cli.shared.answer_lines import phrase_lines
from flmm_cli.shared.options import add_model_options, grounding_config, model_names
from flmm_cli.shared.outputs import add_output
from flmm_cli.shared.records import write_json
from flmm_core.common.plain_text import printable

if TYPE_CHECKING:
    from flmm_core.types import GroundedAnswer


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "ground",
        help="answer about an image file, with masks",
        description="Answers about an image, or with --refer grounds given phrases in it, and prints boxes and scores.",
    )
    parser.add_argument("image", type=Path, help="image file")
    parser.add_argument("text", nargs="+", help="a question in quotes; with --refer one or more phrases, each in quotes")
    parser.add_argument("--refer", action="store_true", help="the text is phrases to ground, not a question")
    add_output(parser, "--out", output={"image": True}, help="write the image with masks and labels to this file")
    add_output(parser, "--json", help="write answer, boxes, scores and masks (compressed COCO RLE) to this file")
    add_output(
        parser,
        "--masks",
        output={"folder": True, "entries": lambda args, folder: folder.glob("[0-9][0-9]*_*.png")},
        metavar="DIR",
        help="write each mask as a black and white PNG into this folder",
    )
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Ground, print, and write what was asked for."""
    if len(args.text) > 1 and not args.refer:
        raise ValueError(f"text: expected one question in quotes, got {len(args.text)} arguments")
    config = grounding_config(args)

    from flmm_core.images.files import read_image, write_image
    from flmm_core.pipeline import GroundingPipeline

    image = read_image(args.image)
    pipeline = GroundingPipeline.from_config(config)
    if pipeline.config != config:  # `auto` stood for these
        parts = pipeline.describe()
        print(f"heads: {parts['heads']}; SAM: {parts['sam']}", file=sys.stderr)
    handle = pipeline.encode(image)
    answer = pipeline.refer(handle, args.text) if args.refer else pipeline.chat(handle, args.text[0])
    command = "; ".join(args.text)
    print(printable(answer.text))
    print("\n".join(phrase_lines(answer)))
    if args.out:
        from flmm_core.drawing.overlay import draw_overlay

        write_image(args.out, draw_overlay(image, answer, command=command), args.command)
        print(f"overlay: {args.out}")
    if args.masks:
        _write_masks(answer, args.masks)
    if args.json:
        record = {"image": str(args.image), "command": command, "mode": "refer" if args.refer else "chat"}
        write_json(args.json, {**record, "model": model_names(pipeline.config), **_record(answer)}, args.command)
        print(f"answer: {args.json}")
    return 0


def _write_masks(answer: GroundedAnswer, folder: Path) -> None:
    from flmm_core.images.files import write_image

    for number, phrase in enumerate(answer.phrases, start=1):
        words = re.sub(r"\W+", "_", phrase.text).strip("_")[:60]
        write_image(folder / f"{number:02d}_{words}.png", phrase.mask.astype("uint8") * 255, "ground")
    print(f"masks: {len(answer.phrases)} in {folder}")


def _record(answer: GroundedAnswer) -> dict[str, object]:
    from flmm_core.data.masks import mask_rle

    phrases = []
    for phrase in answer.phrases:
        rle = mask_rle(phrase.mask)
        phrases.append(
            {
                "text": phrase.text,
                "start": phrase.start,
                "end": phrase.end,
                "box": phrase.box,
                "score": round(phrase.score, 4),
                "presence": round(phrase.presence, 4),
                "absent": phrase.absent,
                "area": int(phrase.mask.sum()),
                "mask": {"size": rle["size"], "counts": rle["counts"].decode()},
            }
        )
    return {
        "answer": answer.text,
        "reason": answer.reason,
        "height": answer.image_height,
        "width": answer.image_width,
        "phrases": phrases,
        "seconds": {stage: round(value, 4) for stage, value in vars(answer.seconds).items()},
    }
