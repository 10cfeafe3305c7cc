"""``python tests/golden_subset.py FROM TO``: the small part of the reference data that ``tests/data/golden`` holds.

Tensors keep the values of the reference; entries of ``outputs.npz`` are thinned out as their new names say.
"""

import hashlib
import io
import json
import shutil
import sys
import zipfile
from pathlib import Path

import numpy as np
import torch

SAMPLE = "portrait"
"""The one image that is kept of each case."""

LLAVA = {
    "input_ids": {}, "pixel_values": {"pixel": 8}, "projected_image_features": {}, "image_positions": {},
    "expanded_mask_ids": {}, "logits": {"last": 8}, "hidden_states_last24": {"last": 8},
    "attention_last24_rows_mean_over_heads": {"last": 8}, "layer_weighted_hidden_states": {"last": 8},
    "mask_attentions": {}, "mask_head_output": {}, "text_embeds_0": {}, "text_embeds_1": {}, "text_embeds_2": {},
    "pred_masks": {}, "boxes": {}, "iou_predictions": {}, "sam_pred_masks": {},
}  # fmt: skip
SAM = {"sam_input_size": {}, "image_embedding_every8th_channel": {"channel": 8}, "boxes": {}, "prompt_masks": {"pixel": 8}}
"""What is compared before SAM's decoder, whose weights are left out."""


def thinned(key, array, *, last=None, pixel=1, channel=1):
    """An entry and the name that says what is left of it."""
    if last:
        start = key.split("_last")[0]
        rest = key.removeprefix(start).lstrip("_").partition("_")[2] if "_last" in key else ""
        axis = 1 if "_last" in key else 0
        return "_".join(filter(None, (start, f"last{last}", rest))), array.take(range(-last, 0), axis=axis)
    if channel > 1:
        return key.replace("every8th", f"every{8 * channel}th"), array[::channel]
    return (f"{key}_every{pixel}th_pixel", array[..., ::pixel, ::pixel]) if pixel > 1 else (key, array)


def smallest(tensor):
    """The same values in as few bytes as hold them."""
    for dtype in (torch.float8_e4m3fn, torch.bfloat16):
        if torch.equal(tensor.to(dtype).float(), tensor):
            return tensor.to(dtype)
    return tensor


def write_weights(state, path):
    """A file that ``torch.load`` reads; its parts are deflated."""
    torch.save({name: smallest(tensor.contiguous()) for name, tensor in state.items()}, buffer := io.BytesIO())
    with zipfile.ZipFile(buffer) as whole, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as small:
        for entry in whole.infolist():
            small.writestr(zipfile.ZipInfo(entry.filename), whole.read(entry), zipfile.ZIP_DEFLATED, 9)


def write_outputs(source, target, kept):
    arrays = np.load(source)
    entries = dict(thinned(key, arrays[f"{SAMPLE}_{key}"], **how) for key, how in kept.items())
    np.savez_compressed(target, **{f"{SAMPLE}_{key}": array for key, array in entries.items()})


def write_manifest(source, folder):
    """Versions, configuration and files of the whole case; which of its tensors there are is what the files hold."""
    whole = json.loads((source / "manifest.json").read_text())
    manifest = {name: whole[name] for name in ("case", "variant", "seed", "versions", "dtype", "config", "files")}
    files = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    files["../sam_tiny.pth"] = folder.parent / "sam_tiny.pth"
    manifest["sha256"] = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")


def main(source, target):
    sam = torch.load(source / "sam_tiny.pth", weights_only=True)
    zeros = {name: torch.zeros_like(tensor) for name, tensor in sam.items() if name.startswith("mask_decoder.")}
    write_weights({**sam, **zeros}, target / "sam_tiny.pth")
    for case, kept in (("llava", LLAVA), ("sam_refiner", SAM)):
        folder = target / case
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shutil.copyfile(source / case / f"{SAMPLE}.png", folder / f"{SAMPLE}.png")
        write_outputs(source / case / "outputs.npz", folder / "outputs.npz", kept)
    shutil.copytree(source / "llava" / "lmm", target / "llava" / "lmm", copy_function=shutil.copyfile)
    write_weights(torch.load(source / "llava" / "flmm_heads.pth", weights_only=True), target / "llava" / "flmm_heads.pth")
    inputs = json.loads((source / "llava" / "inputs.json").read_text())
    inputs["samples"] = [sample for sample in inputs["samples"] if sample["name"] == SAMPLE]
    (target / "llava" / "inputs.json").write_text(json.dumps(inputs, indent=1) + "\n")
    arrays = np.load(source / "sam_refiner" / "inputs.npz")
    np.savez_compressed(target / "sam_refiner" / "inputs.npz", **{key: arrays[key] for key in arrays if key.startswith(SAMPLE)})
    for case in ("llava", "sam_refiner"):
        write_manifest(source / case, target / case)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:3]))
