"""`flmm bag`: grounds the images of a recorded bag and writes the answers into another one."""

from __future__ import annotations

import argparse
import math
from dataclasses import asdict
from pathlib import Path

from flmm_cli.shared.options import add_model_options, grounding_config, require_counts
from flmm_cli.shared.outputs import add_output


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "bag",
        help="ground the images of a recorded bag",
        description="Sends the same command about images of a recording, without a running node, and writes a bag of what the"
        " node would publish: answers, overlays, label masks, points and markers, with the stamps of the images. After an"
        " interruption the same command continues where it stopped.",
    )
    parser.add_argument("bag", type=Path, help="MCAP file to read, or the folder of a recording with all its MCAP files")
    words = parser.add_mutually_exclusive_group(required=True)
    words.add_argument("--command", dest="question", metavar="TEXT", help="the question or instruction")
    words.add_argument("--phrase", metavar="TEXT", help="a phrase to ground")
    names = ("", ".partial", ".resumed")  # of the bag, and of what is written until it is complete
    bags = {"binary": True, "entries": lambda args, path: [path.with_name(path.name + end) for end in names]}
    add_output(parser, "--out", output=bags, required=True, help="MCAP file to write")
    parser.add_argument("--every", type=int, default=1, help="ground every N-th image (default: all)", metavar="N")
    parser.add_argument("--image", default="", help="topic of the images (default: the only one)")
    parser.add_argument("--depth", default="", help="topic of the depth; with --camera-info, objects are located in space")
    parser.add_argument("--camera-info", default="", help="topic of the camera's intrinsics")
    parser.add_argument(
        "--depth-tolerance",
        type=float,
        default=0.02,
        help="most seconds between the stamps of an image and its depth (default: %(default)s)",
    )
    add_model_options(parser)


def run(args: argparse.Namespace) -> int:
    """Ground, and print how many images have an answer; exit status 1 if none has."""
    require_counts(args, "every")
    if bool(args.depth) != bool(args.camera_info):
        raise ValueError("--depth and --camera-info: expected both, or none of them")
    if not math.isfinite(args.depth_tolerance) or args.depth_tolerance < 0:
        raise ValueError(f"--depth-tolerance: expected at least 0 s, got {args.depth_tolerance:g}")
    if args.bag.is_dir() and args.out.resolve().is_relative_to(args.bag.resolve()):
        raise ValueError(f"--out: expected a file outside the folder that is read, got {args.out}")
    config = grounding_config(args)
    from tqdm import tqdm

    from flmm_core.pipeline import GroundingPipeline
    from flmm_core.serving.requests import Mode
    from flmm_ros.bag.job import BagJob, run_job
    from flmm_ros.bag.recording import Recording

    recording = Recording(args.bag, lambda text: print(f"flmm bag: {text}"))
    job = BagJob(
        bag=args.bag.resolve().name,
        recording=recording,
        out=args.out,
        topics=recording.choose(args.image, args.depth, args.camera_info),
        mode=Mode.CHAT if args.question else Mode.REFER,
        text=args.question or args.phrase,
        every=args.every,
        depth_tolerance=args.depth_tolerance,
        model=asdict(config),
    )
    total = len(job.images())
    pipeline = GroundingPipeline.from_config(config)
    with tqdm(total=total, unit="image", desc=job.topics.image) as bar:
        result = run_job(
            pipeline, job, on_images=bar.update, on_refusal=lambda number, reason: tqdm.write(f"image {number}: {reason}")
        )
    done = result.answered + result.resumed
    resumed = f" ({result.resumed} of them earlier)" if result.resumed else ""
    print(f"{args.out}: {done} of {total} images answered{resumed}")
    return 0 if done else 1
