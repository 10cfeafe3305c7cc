"""``python -m flmm_core.verification.verify DIR...``: compare every stage with reference data of the published method.

Each folder is one case, or contains some. Models are loaded and run as in normal use, starting from image files and phrases;
sizes, names and channels are read from the files. Prints the largest difference of each stage, and exits with status 1 if one
exceeds its tolerance or a case cannot be run.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from flmm_core.common.plain_text import one_line
from flmm_core.families import Checkpoint, family_of
from flmm_core.loading import checkpoints
from flmm_core.loading.published_heads import load_mask_head
from flmm_core.sam.checkpoints import load_sam
from flmm_core.sam.refiner import SamRefiner
from flmm_core.sam.refiner_config import RefinerConfig
from flmm_core.verification.lmm_sample import LmmSample
from flmm_core.verification.reference_data import EXPECTED, Check, Wanted, difference, wrong
from flmm_core.verification.reference_files import arrays, cases, fields, heads_file, image, manifest, sam_file

CPU = torch.device("cpu")
_LESS = {
    "mask": RefinerConfig(use_mask=False),
    "box": RefinerConfig(use_box=False),
    "text": RefinerConfig(use_text=False),
}
"""Refiners with one kind of prompts less."""


@dataclass(frozen=True)
class Outcome:
    """Result of a case."""

    checks: tuple[Check, ...]
    notes: tuple[str, ...]
    """Tensors that were not compared, and stages without a reference."""
    error: str = ""
    """The error that ended the case early, in one line; empty if there was none."""

    @property
    def passed(self) -> bool:
        """Whether the case was completed and all differences are within their tolerances."""
        return not self.error and all(check.passed for check in self.checks)


@torch.no_grad()
def verify_case(folder: Path) -> Outcome:
    """Run one case.

    Args:
        folder: with ``manifest.json``.
    """
    checks: list[Check] = []
    notes: list[str] = []
    if (folder / "inputs.json").is_file() or (folder / "lmm").is_dir():
        stages = _lmm_case(folder, notes)
    else:
        stages = _unet_case(folder) if (folder / "unet_head.pth").is_file() else _refiner_case(folder)
    error = ""
    try:
        for check in stages:
            checks.append(check)  # checks before an error are kept
        error = "" if checks else f"reference data {folder}: expected something to compare with, got nothing"
    except Exception as caught:  # any error of the libraries; the other cases are still run
        kind = "" if isinstance(caught, ValueError) else f"{type(caught).__name__}: "
        error = kind + one_line(caught)
        if isinstance(caught, KeyError):
            error = f"reference data {folder}: expected an entry {error.removeprefix(kind)}, got none"
    return Outcome(tuple(checks), tuple(notes), error)


def _unet_case(folder: Path) -> Iterator[Check]:
    head = load_mask_head(folder / "unet_head.pth")
    outputs = arrays(folder / "outputs.npz")
    for name, maps in arrays(folder / "inputs.npz").items():
        key = name.replace("attn", "logits")
        yield Check(name, "U-Net output", difference(head(torch.from_numpy(maps)), outputs[key]), key)


def _refiner_case(folder: Path) -> Iterator[Check]:
    sam = load_sam(sam_file(folder))
    inputs, outputs = arrays(folder / "inputs.npz"), arrays(folder / "outputs.npz")
    for name in [key.removesuffix("_coarse") for key in inputs if key.endswith("_coarse")]:
        want, refiner = Wanted(outputs, name), SamRefiner(sam=sam)
        seen = refiner.encode_image(np.asarray(image(folder, name)))
        coarse = torch.from_numpy(inputs[f"{name}_coarse"])
        texts = [torch.from_numpy(inputs[f"{name}_text{i}"]) for i in range(len(coarse))]
        yield want.check("SAM input size", (seen.input_height, seen.input_width), want["sam_input_size"], "sam_input_size")
        yield from want.compare("SAM embedding", "image_embedding", seen.embedding[0])
        prompts = refiner.prompts(seen, coarse, texts)
        yield from want.compare("boxes", "boxes", prompts.boxes)
        yield from want.compare("SAM mask prompts", "prompt_masks", prompts.masks)
        refined = refiner(seen, coarse, texts)
        yield from want.compare("SAM low-res logits", "low_res_masks", refined.low_res)
        yield from want.compare("SAM predicted IoU", "iou_predictions", refined.iou)
        yield from want.compare("SAM logits", "sam_masks", refiner.to_image(refined.low_res, seen))
        for part, config in _LESS.items():
            less = SamRefiner(sam=sam, config=config)
            if any(key.startswith(f"no_{part}_") for key in want.arrays):
                yield from want.compare("SAM low-res logits", f"no_{part}_low_res_masks", less(seen, coarse, texts).low_res)
        many = SamRefiner(sam=sam, config=RefinerConfig(multimask=True))
        if any(key.startswith("multimask_") for key in want.arrays):
            full = many.to_image(many(seen, coarse, texts).low_res, seen)
            yield from want.compare("SAM logits", "multimask_sam_masks", full)
            if "multimask_sam_masks_positive_packbits" in want:
                positive = want["multimask_sam_masks_positive_packbits"]
                bits = wrong(np.packbits(full.numpy() > 0).tolist(), positive.tolist())
                yield Check(name, "mask IoU", bits, "multimask_sam_masks_positive_packbits, bytes that differ")


def _lmm_case(folder: Path, notes: list[str]) -> Iterator[Check]:
    stated, inputs = manifest(folder), fields(folder / "inputs.json")
    words = inputs.get("prompt_text") or re.sub(r"<[^<>]*>", "", inputs["prompt"]).strip()
    known = family_of(Checkpoint(folder / "lmm")).settings
    said = {**stated.get("config", {}), **inputs}
    settings = {name: said[name] for name in known if name in said}
    options = {"refer_prompt": words, "reuse_prefix": False, "settings": settings}
    lmm = checkpoints.load_lmm(folder / "lmm", device=CPU, dtype=torch.float32, **options)
    with tempfile.TemporaryDirectory() as scratch:
        path = heads_file(folder, Path(scratch))
        shape = checkpoints.lmm_shape(folder / "lmm")
        heads = checkpoints.load_heads(path, shape=shape, sam=load_sam(sam_file(folder)))
    outputs = arrays(folder / "outputs.npz")
    for sample in inputs["samples"]:
        name = sample["name"]
        case = LmmSample(image(folder, name), sample, stated, inputs, Wanted(outputs, name), lmm, heads)
        missing = set(EXPECTED)
        for check in case.run():
            missing.discard(check.stage)
            yield check
        notes.append(f"not compared: {name}: {', '.join(case.want.unread)}")
        if missing:
            notes.append(f"no reference: {name}: {', '.join(sorted(missing))}")


def report(folder: Path) -> bool:
    """Run a case and print its stages; returns whether all passed."""
    outcome = verify_case(folder)
    print(folder.name)
    for check in outcome.checks:
        limits = f"{check.difference:10.2e}  tolerance {check.tolerance:7.0e}  {'ok' if check.passed else 'EXCEEDED':<8}"
        print(f"  {check.sample:<12} {check.stage:<20} {limits}  {check.note}")
    for note in outcome.notes:
        print(f"  {note}")
    within = sum(check.passed for check in outcome.checks)
    print(f"  {within} of {len(outcome.checks)} within their tolerance")
    if outcome.error:
        print(f"  {folder.name}: not run to its end: {outcome.error}")
    print()
    return outcome.passed


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m flmm_core.verification.verify", description=__doc__.split("\n\n")[1])
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a case, or a folder of cases")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    try:
        results = [report(folder) for folder in cases(options.folders)]
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
