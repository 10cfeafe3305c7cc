"""`flmm convert`: writes published heads as a folder of this project, with the LMM and SAM that they belong to."""

from __future__ import annotations

import argparse

from flmm_cli.shared.outputs import add_output


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "convert",
        help="write published heads as a folder",
        description="Writes published heads as config.json and safetensors, number for number, with the name and fingerprint of"
        " the LMM and the SAM that they belong to. They are checked against both; the weights of an LMM on the Hub are"
        " downloaded for its fingerprint.",
    )
    parser.add_argument("heads", help="published .pth file, also on the Hub (owner/name/file.pth)")
    add_output(
        parser,
        "out",
        output={"folder": True, "guarded": True},
        help="folder to write; it must not hold anything yet",
    )
    parser.add_argument("--lmm", required=True, help="LMM that they were trained on: a folder or a Hugging Face name")
    parser.add_argument(
        "--sam", required=True, help="SAM that they were trained with: a segment-anything .pth file or a folder"
    )


def run(args: argparse.Namespace) -> int:
    """Check, write, and say what was written."""
    if args.out.exists() and (not args.out.is_dir() or any(args.out.iterdir())):
        raise ValueError(f"{args.out}: expected a folder that is empty or not there yet, got one with files")
    from flmm_core.loading.checkpoints import convert_heads

    origin = convert_heads(args.heads, args.out, lmm=args.lmm, sam=args.sam)
    print(f"heads: {args.out}")
    print(f"  LMM: {origin.lmm}, fingerprint {origin.lmm_fingerprint}")
    print(f"  SAM: {origin.sam}, fingerprint {origin.sam_fingerprint}")
    return 0
