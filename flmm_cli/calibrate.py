"""`flmm calibrate`: finds the attention heads of an LMM that point, from images without labels."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from flmm_cli.shared.held_out import rendered_scenes
from flmm_cli.shared.options import add_model_options, grounding_config, require_counts
from flmm_cli.shared.outputs import add_output
from flmm_core.common.plain_text import one_line
from flmm_core.config import GroundingConfig

SPLIT = "calibration"
"""Of the rendered scenes, which no evaluation uses."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "calibrate",
        help="find the attention heads of an LMM that point, without training",
        description="The LMM describes images; the noun chunks of its descriptions are phrases to look for. Its attention heads"
        " that point at them are chosen, and the presence score is calibrated with phrases of other images. Nothing is"
        " trained and no label is needed. The result is kept in the user's cache, where `--heads auto` and `--heads attention`"
        " find it, or written to --out, for `--heads FILE`.",
    )
    parser.add_argument("lmm", metavar="LMM", help="a folder, a Hugging Face name, or the name of a registered model")
    parser.add_argument("--images", type=Path, metavar="DIR", help="folder of image files (default: rendered table tops)")
    parser.add_argument("--limit", type=int, default=50, help="most images (default: %(default)s)")
    question = GroundingConfig.refer_prompt
    parser.add_argument("--question", default=question, help="answered about each image (default: %(default)s)")
    parser.add_argument(
        "--criterion",
        default="contrast",
        choices=("contrast", "entropy"),
        help="how heads are compared: attention beyond that of other phrases, or spatial entropy (default: %(default)s)",
    )
    parser.add_argument(
        "--heads", dest="count", type=int, default=3, metavar="N", help="attention heads to choose (default: %(default)s)"
    )
    add_output(parser, "--out", metavar="FILE", help="write the choice to this .json file instead of the cache")
    add_model_options(parser, ("device", "dtype", "quantization", "cpu_threads"))


def run(args: argparse.Namespace) -> int:
    """Calibrate, write, and print what was found."""
    require_counts(args, "limit")
    if args.count < 1:
        raise ValueError(f"--heads: expected at least 1, got {args.count}")
    if args.out and args.out.suffix != ".json":
        raise ValueError(f"--out: expected a .json file, by which heads of this kind are known, got {args.out}")
    paths = image_files(args.images if args.images else rendered_scenes(args.limit, 0, 1, split=SPLIT) / "images", args.limit)
    config = grounding_config(args)

    import torch

    from flmm_core.common.devices import resolve_device
    from flmm_core.images.files import read_image
    from flmm_core.loading.checkpoints import fingerprints, load_lmm
    from flmm_core.loading.head_choices import choice_path, write_choice
    from flmm_core.training.calibration import CalibrationSettings, calibrate

    if config.cpu_threads:
        torch.set_num_threads(config.cpu_threads)
    device, dtype = resolve_device(config)
    print(f"loading {args.lmm} ...", flush=True)
    lmm = load_lmm(args.lmm, device=device, dtype=dtype, quantization=config.quantization)
    settings = CalibrationSettings(question=args.question, criterion=args.criterion, heads=args.count)
    fingerprint = fingerprints(lmm=args.lmm)["lmm"]
    readers = [partial(read_image, path) for path in paths]
    choice = calibrate(lmm, readers, settings, name=str(args.lmm), fingerprint=fingerprint)
    path = args.out or choice_path(fingerprint)
    write_choice(path, choice)
    for name in ("heads", "chosen by", "presence score"):
        print(f"{name}: {choice.facts()[name]}")
    print(f"file: {path}")
    return 0


def image_files(folder: Path, most: int) -> list[Path]:
    """Image files of a folder in the order of their names, at most ``most``; one that cannot be read is skipped with a line.

    Raises:
        ValueError: it is no folder, or less than two can be read.
    """
    from PIL import Image

    from flmm_core.images.files import read_image

    if not folder.is_dir():
        raise ValueError(f"--images: expected a folder, got {folder}")
    known = Image.registered_extensions()
    paths: list[Path] = []
    for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in known):
        if len(paths) == most:
            break
        try:
            read_image(path)
        except (ValueError, OSError) as error:
            print(f"skipped: {one_line(error)}", flush=True)
        else:
            paths.append(path)
    if len(paths) < 2:
        raise ValueError(f"--images: expected at least two image files in {folder}, got {len(paths)}")
    return paths
