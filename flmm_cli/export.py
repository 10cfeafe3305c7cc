"""`flmm export`: the networks of heads and SAM as ONNX models, compared with PyTorch on the spot."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from flmm_cli.model_options import add_model_options, grounding_config
from flmm_core.engines.names import NAMES


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "export",
        help="write the networks of heads and SAM as ONNX models",
        description="Writes U-Net, SAM encoder and SAM decoder as ONNX models with a manifest (hashes of weights, versions,"
        " inputs, measured differences), each compared with PyTorch in ONNX Runtime on the CPU. `--heads-backend onnx"
        " --engines OUT` runs them; without --engines they are exported by themselves when they are first used.",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--what", default=",".join(NAMES), help="which networks, separated by commas (default: %(default)s)")
    add_model_options(parser, ("lmm", "heads", "sam", "heads_precision"))


def run(args: argparse.Namespace) -> int:
    """Export, compare, and print the differences."""
    what = tuple(args.what.split(","))
    if unknown := sorted(set(what) - set(NAMES)):
        raise ValueError(f"--what: expected some of {','.join(NAMES)}, got {','.join(unknown)}")
    config = grounding_config(args)
    import flmm_tabletop
    from flmm_core.checkpoints import check_origin, lmm_shape, load_heads
    from flmm_core.engines.attach import export_checked
    from flmm_core.sam_checkpoints import load_sam

    flmm_tabletop.register()
    logging.basicConfig(format="%(message)s")
    logging.getLogger("flmm_core").setLevel(logging.INFO)
    heads = load_heads(config.heads, shape=lmm_shape(config.lmm), sam=load_sam(config.sam))
    check_origin(config.heads, lmm=config.lmm, sam=config.sam)
    for one in export_checked(heads, args.out, what=what, precision=config.heads_precision):
        figures = f"largest difference {one.difference:.1e} of the largest number"
        print(f"{one.network} {one.output}: {figures}" + (f", IoU {one.iou:.4f}" if one.is_logits else ""))
    print(f"export: {args.out}")
    return 0
