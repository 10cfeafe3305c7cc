"""`flmm export`: writes the networks of heads and SAM as ONNX models and compares them with PyTorch."""

from __future__ import annotations

import argparse
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flmm_cli.shared.options import add_model_options, grounding_config
from flmm_cli.shared.outputs import add_output
from flmm_core.engines.names import NAMES

if TYPE_CHECKING:
    from flmm_core.engines.parity import Parity

GPU = "cuda"
"""Device that engines are built for."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "export",
        help="write the networks of heads and SAM as ONNX models",
        description="Writes the networks of heads and SAM (U-Net, SAM encoder, SAM decoder) as ONNX models with a manifest"
        " (hashes of weights, versions,"
        " inputs, measured differences), each compared with PyTorch in ONNX Runtime on the CPU. `--heads-backend onnx"
        " --engines OUT` runs them; without --engines they are exported at their first use.",
    )
    add_output(
        parser,
        "--out",
        output={"folder": True, "guarded": True},
        required=True,
        help="folder to write; it may hold an earlier export, and nothing else",
    )
    parser.add_argument(
        "--what", help=f"which networks, of {','.join(NAMES)}, separated by commas (default: all that the heads have)"
    )
    parser.add_argument(
        "--build-engines",
        action="store_true",
        help="also build them with TensorRT for the GPU of this machine, into the user's cache, and compare them on it",
    )
    add_model_options(parser, ("lmm", "heads", "sam", "heads_precision"))


def run(args: argparse.Namespace) -> int:
    """Export, compare, and print the differences."""
    what = None if args.what is None else tuple(args.what.split(","))
    if unknown := sorted(set(what or ()) - set(NAMES)):
        raise ValueError(f"--what: expected some of {','.join(NAMES)}, got {','.join(unknown)}")
    config = grounding_config(args)
    import torch

    from flmm_core.common.devices import check_device
    from flmm_core.engines.attach import built_checked, export_checked
    from flmm_core.loading.defaults import resolved
    from flmm_core.loading.parts import load_heads_and_sam

    if args.build_engines:
        check_device(torch.device(GPU))
    logging.basicConfig(format="%(message)s")
    logging.getLogger("flmm_core").setLevel(logging.INFO)
    heads = load_heads_and_sam(resolved(config))
    _print("", export_checked(heads, args.out, what=what, precision=config.heads_precision))
    if args.build_engines:
        engine, found = built_checked(heads.to(GPU), args.out, what=what, precision=config.heads_precision)
        _print(f"{engine.description} ", found)
    print(f"export: {args.out}")
    return 0


def _print(what: str, found: Sequence[Parity]) -> None:
    for one in found:
        figures = f"largest difference {one.difference:.1e} of the largest number"
        print(f"{what}{one.network} {one.output}: {figures}" + (f", IoU {one.iou:.4f}" if one.is_logits else ""))
