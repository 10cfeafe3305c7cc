"""`flmm bag`: grounds the images of a recorded bag, and writes the answers as another."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from flmm_cli.counts import require_counts
from flmm_cli.model_options import add_model_options, grounding_config, load_pipeline, model_names

if TYPE_CHECKING:
    from flmm_ros.bag.files import BagWriter

_NAME = "flmm bag"
"""Of the metadata that say how a bag was made."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "bag",
        help="ground the images of a recorded bag",
        description="Asks the same about images of an MCAP bag, without a running node, and writes a bag of what the node would"
        " publish: answers, overlays, label masks, points and markers, under the stamps of the images. When it is interrupted,"
        " the same command goes on where it was.",
    )
    parser.add_argument("bag", type=Path, help="MCAP file to read")
    words = parser.add_mutually_exclusive_group(required=True)
    words.add_argument("--command", dest="question", metavar="TEXT", help="the question, or the order")
    words.add_argument("--phrase", metavar="TEXT", help="a phrase to ground as it is")
    parser.add_argument("--out", type=Path, required=True, help="MCAP file to write")
    parser.add_argument("--every", type=int, default=1, help="ground every N-th image (default: all)", metavar="N")
    parser.add_argument("--image", default="", help="topic of the images (default: the only one)")
    parser.add_argument("--depth", default="", help="topic of their depth; with --camera-info, things get a place in space")
    parser.add_argument("--camera-info", default="", help="topic of their intrinsics")
    parser.add_argument("--depth-tolerance", type=float, default=0.02, help="seconds between both (default: %(default)g)")
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Ground, and say how many images have an answer; exit status 1 if none has."""
    require_counts(args, "every")
    if bool(args.depth) != bool(args.camera_info):
        raise ValueError("--depth and --camera-info: expected both, or none of them")
    if args.out.resolve() == args.bag.resolve():
        raise ValueError(f"--out: expected another file than the bag that is read, got {args.out}")
    config = grounding_config(args)
    from tqdm import tqdm

    from flmm_core.serving.requests import Mode, Status
    from flmm_ros.bag import grounding as bag_grounding
    from flmm_ros.bag.files import BagWriter
    from flmm_ros.commands import Command

    topic, count = bag_grounding.image_topic(args.bag, args.image, lambda text: print(f"flmm bag: {text}"))
    topics = bag_grounding.Topics(topic, args.depth, args.camera_info)
    asked = {"bag": args.bag.name, "command": args.question or "", "phrase": args.phrase or "", "every": str(args.every)}
    asked |= {"image": topic, "depth": args.depth, "camera_info": args.camera_info, "model": str(model_names(config))}
    pipeline = load_pipeline(config)
    mode = Mode.CHAT if args.question else Mode.REFER
    total = -(-count // args.every)
    partial = args.out.with_name(args.out.name + ".partial")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        finished = _earlier(partial, asked)
        writer = stack.enter_context(BagWriter(partial, name=_NAME, made=asked))
        done = finished(writer)
        answered = 0
        bar = stack.enter_context(tqdm(total=total, initial=done, unit="image", desc=topic))
        for number, (_, recorded, space) in enumerate(bag_grounding.images(args.bag, topics, args.every)):
            if number < done:
                continue
            command = Command(number + 1, mode, args.question or args.phrase)
            seen = space if args.depth else None
            message, reply, located = bag_grounding.ground(pipeline, recorded, seen, command, args.depth_tolerance)
            bag_grounding.write_reply(writer, message, reply, located, recorded.log_time)
            answered += reply.status == Status.ANSWERED
            if reply.status != Status.ANSWERED:
                tqdm.write(f"image {number + 1}: {reply.reason}")
            bar.update()
    partial.replace(args.out)
    resumed = f" ({done} of them earlier)" if done else ""
    print(f"{args.out}: {done + answered} of {total} images answered{resumed}")
    return 0 if done + answered else 1


def _earlier(partial: Path, asked: dict[str, str]) -> Callable[[BagWriter], int]:
    """What an interrupted run has left: a function that copies it into a new bag and says how many images it is about."""
    from flmm_ros.bag.files import BagError, Recorded, metadata, read

    groups: list[list[Recorded]] = []
    group: list[Recorded] = []
    try:
        usable = partial.exists() and metadata(partial, _NAME) == asked
        for recorded in read(partial) if usable else ():
            group.append(recorded)
            if recorded.topic == "/grounding/answer":  # the last that is written about an image
                groups.append(group)
                group = []
    except BagError:
        groups = []  # it was cut off before anything was in it

    def copy(writer: BagWriter) -> int:
        for recorded in (recorded for found in groups for recorded in found):
            writer.copy(recorded)
        return len(groups)

    return copy
