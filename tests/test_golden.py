"""Agreement with reference data that the published method computed on tiny models, by the command that everybody has.

A small part of the data lies in ``tests/data/golden``. The whole lies outside the repository, in ``$FLMM_GOLDEN`` or in
``../shared/golden`` next to it, and is compared as well where it is there.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from flmm_core.verification.reference_data import TOLERANCES, missed_iou
from flmm_core.verification.reference_files import cases, heads_file, sam_file
from flmm_core.verification.verify import main, verify_case

SMALL = Path(__file__).parent / "data" / "golden"
WHOLE = Path(os.environ.get("FLMM_GOLDEN") or Path(__file__).resolve().parents[2] / "shared" / "golden")
CASES = cases([SMALL, WHOLE] if WHOLE.is_dir() else [SMALL])
STAGES = {
    "pixel values", "image features", "token ids", "token positions", "image positions", "hidden states",
    "merged maps", "text tokens", "U-Net output", "un-padded logits", "boxes", "SAM logits", "mask IoU",
}  # fmt: skip


def test_the_folder_that_was_named_is_there():
    assert WHOLE.is_dir() or "FLMM_GOLDEN" not in os.environ, f"FLMM_GOLDEN: expected an existing folder, got {WHOLE}"


@pytest.mark.parametrize("folder", CASES, ids=["small_" * (folder.parent == SMALL) + folder.name for folder in CASES])
def test_every_stage(folder):
    outcome = verify_case(folder)
    checks = outcome.checks
    assert not outcome.error
    assert not [note for note in outcome.notes if note.startswith("no reference")]
    exceeded = [f"{c.sample} {c.stage} {c.difference} > {c.tolerance} ({c.note})" for c in checks if not c.passed]
    assert not exceeded
    if (folder / "lmm").is_dir():
        for sample in json.loads((folder / "inputs.json").read_text())["samples"]:
            assert {c.stage for c in checks if c.sample == sample["name"]} >= STAGES


def test_a_difference_is_found(tmp_path, capsys):
    shutil.copyfile(SMALL / "sam_tiny.pth", tmp_path / "sam_tiny.pth")
    folder = shutil.copytree(SMALL / "sam_refiner", tmp_path / "refiner")
    assert main([str(tmp_path)]) == 0
    outputs = dict(np.load(folder / "outputs.npz"))
    (name,) = (key for key in outputs if "prompt_masks" in key)
    outputs[name] = outputs[name].copy()
    outputs[name].flat[0] += 2e-4
    np.savez(folder / "outputs.npz", **outputs)
    capsys.readouterr()
    assert main([str(folder)]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if name.removeprefix("portrait_") in line]
    assert len(lines) == 1 and "SAM mask prompts" in lines[0] and "EXCEEDED" in lines[0] and "tolerance   1e-04" in lines[0]
    outputs[name] = outputs[name][..., 1:]
    np.savez(folder / "outputs.npz", **outputs)
    assert main([str(folder)]) == 1
    assert " inf " in capsys.readouterr().out


def test_a_case_of_no_family(tmp_path, capsys):
    folder = tmp_path / "case"
    (folder / "lmm").mkdir(parents=True)
    (folder / "lmm" / "config.json").write_text(json.dumps({"model_type": "nobody"}))
    (folder / "manifest.json").write_text(json.dumps({"files": {}}))
    (folder / "inputs.json").write_text(json.dumps({"prompt": "<image>\nLook.", "samples": []}))
    assert main([str(folder)]) == 1
    assert "case: not run to its end: " in (out := capsys.readouterr().out)
    assert "expected a kind of LMM" in out and "got 'nobody'" in out


def test_no_reference_data(tmp_path, capsys):
    for given in (tmp_path, tmp_path / "nowhere"):
        assert main([str(given)]) == 1
        written = capsys.readouterr()
        assert not written.out
        assert written.err == f"{given}: expected reference data (a manifest.json, here or one folder below), got none\n"


def test_nothing_to_compare(tmp_path, capsys):
    shutil.copyfile(SMALL / "sam_tiny.pth", tmp_path / "sam_tiny.pth")
    folder = shutil.copytree(SMALL / "sam_refiner", tmp_path / "refiner")
    np.savez(folder / "inputs.npz")
    assert main([str(folder)]) == 1
    assert f"reference data {folder}: expected something to compare with, got nothing" in capsys.readouterr().out


def test_one_pixel_of_a_mask_is_a_difference():
    logits = np.full((40, 50), -3.0)
    logits[:20] = 3.0
    mask = logits > 0
    assert missed_iou(mask, logits) == 0.0
    mask[0, 0] = False
    assert missed_iou(mask, logits) > TOLERANCES["mask IoU"]


# --- a case alone, and with other numbers of things -----------------------------------------------------------------------


@pytest.fixture
def alone(tmp_path):
    """The case with whole heads and its SAM, without neighbours."""
    shutil.copyfile(SMALL / "sam_tiny.pth", tmp_path / "sam_tiny.pth")
    return shutil.copytree(SMALL / "llava", tmp_path / "alone")


def changed(folder, change):
    """Put something else for entries of a case's outputs; what becomes None is left out."""
    outputs = {key: change(key.removeprefix("portrait_"), value) for key, value in np.load(folder / "outputs.npz").items()}
    np.savez(folder / "outputs.npz", **{key: value for key, value in outputs.items() if value is not None})


def test_from_inside_a_case_with_more_words_than_rows(alone, monkeypatch, capsys):
    """The reference keeps the last rows of long tensors only, which many phrases are longer than."""
    outputs = dict(np.load(alone / "outputs.npz"))
    states = outputs.pop("portrait_layer_weighted_hidden_states_last8")
    np.savez(alone / "outputs.npz", **outputs, portrait_layer_weighted_hidden_states_last4=states[-4:])
    monkeypatch.chdir(alone)
    status, out = main(["."]), capsys.readouterr().out
    assert status == 0, out
    assert out.startswith("alone\n") and "layer_weighted_hidden_states\n" in out


def test_every_stage_finds_a_difference(alone):
    """One number of each tensor is moved by twice its tolerance; only what is compared with that tensor exceeds it."""
    moved = {
        "pixel_values_every8th_pixel": ("pixel values", 2e-5), "projected_image_features": ("image features", 2e-4),
        "expanded_mask_ids": ("token positions", 7), "input_ids": ("token ids", 1), "image_positions": ("image positions", 1),
        "hidden_states_last8": ("hidden states", 2e-4), "logits_last8": ("word logits", 2e-4),
        "attention_last8_rows_mean_over_heads": ("attention rows", 2e-5), "mask_attentions": ("merged maps", 2e-5),
        "mask_head_output": ("U-Net output", 2e-4), "text_embeds_0": ("text tokens", 2e-4),
        "pred_masks": ("un-padded logits", 2e-4), "boxes": ("boxes", 1e-3),
        "iou_predictions": ("SAM predicted IoU", 2e-3), "sam_pred_masks": ("SAM logits", 4e-3),
    }  # fmt: skip

    def change(key, array):
        if key in moved:
            place = np.argmax(array >= 0) if key == "expanded_mask_ids" else -1
            array = array.copy()
            array.flat[place] += np.asarray(moved[key][1], array.dtype)
        return array

    changed(alone, change)
    outcome = verify_case(alone)
    assert not outcome.error
    exceeded = {check.stage for check in outcome.checks if not check.passed}
    assert exceeded == {stage for stage, _ in moved.values()}


@pytest.mark.parametrize(
    "name", ["inputs.json", "outputs.npz", "portrait.png", "flmm_heads.pth", "../sam_tiny.pth", "manifest.json"]
)
def test_damaged_and_missing_files(alone, capsys, name):
    (alone / name).write_bytes((alone / name).read_bytes()[:200])
    assert main([str(alone)]) == 1
    assert one_line(capsys.readouterr()).startswith("alone: not run to its end: ")
    (alone / name).unlink()
    assert main([str(alone)]) == 1
    assert "expected " in (line := one_line(capsys.readouterr())) and "got none" in line


def one_line(written):
    """The only line that says what is wrong."""
    assert "Traceback" not in written.out + written.err
    (line,) = [line.strip() for line in (written.out + written.err).splitlines() if "expected" in line or "not run" in line]
    return line


def test_a_missing_tensor(alone, capsys):
    changed(alone, lambda key, array: None if key in ("boxes", "sam_pred_masks") else array)
    assert main([str(alone)]) == 1
    out = capsys.readouterr().out
    assert "expected an entry portrait_sam_pred_masks, got none" in out
    assert "merged maps" in out  # what was compared before it


# --- parts that a case shares with others ---------------------------------------------------------------------------------


def test_heads_are_completed_from_the_named_case(tmp_path):
    part = "sam.model.mask_decoder.iou_token.weight"
    for name, state in {
        "a": {part: torch.zeros(1)}, "b": {part: torch.ones(1)}, "own": {"text_layer_weights": torch.zeros(3)},
    }.items():  # fmt: skip
        (tmp_path / name).mkdir()
        torch.save(state, tmp_path / name / "flmm_heads.pth")
        (tmp_path / name / "manifest.json").write_text("{}")
    (scratch := tmp_path / "scratch" / "heads").mkdir(parents=True)
    assert heads_file(tmp_path / "a", scratch) == tmp_path / "a" / "flmm_heads.pth"
    assert torch.load(heads_file(tmp_path / "own", scratch))[part] == 0
    (tmp_path / "own" / "manifest.json").write_text(json.dumps({"files": {"heads": "merge those of ../b/flmm_heads.pth in"}}))
    whole = torch.load(heads_file(tmp_path / "own", scratch))
    assert set(whole) == {part, "text_layer_weights"} and whole[part] == 1
    for name in "ab":
        shutil.rmtree(tmp_path / name)
    with pytest.raises(ValueError, match=r"expected sam\.model\.mask_decoder\.\* in it or in \.\./b/flmm_heads\.pth, got none"):
        heads_file(tmp_path / "own", scratch)


def test_sam_of_a_case(tmp_path):
    (folder := tmp_path / "case").mkdir()
    manifest = folder / "manifest.json"
    manifest.write_text("{}")
    with pytest.raises(ValueError, match="expected a SAM that the manifest names"):
        sam_file(folder)
    (tmp_path / "sam_b.pth").touch()
    (folder / "sam_own.pth").touch()
    assert sam_file(folder) == folder / "sam_own.pth"
    manifest.write_text(json.dumps({"sha256": {"../llava/flmm_heads.pth": "", "../sam_b.pth": ""}}))
    assert sam_file(folder).resolve() == tmp_path / "sam_b.pth"
    manifest.write_text(json.dumps({"files": {"../sam_c.pth": ""}}))
    with pytest.raises(ValueError, match=r"expected a file sam_c\.pth, got none"):
        sam_file(folder)


def test_only_averaged_attention_is_compared(tmp_path, capsys):
    (folder := tmp_path / "case").mkdir()
    (folder / "inputs.json").write_text(json.dumps({"prompt": "", "samples": []}))
    (folder / "manifest.json").write_text(json.dumps({"config": {"merge": "max"}}))
    assert main([str(folder)]) == 1
    assert one_line(capsys.readouterr()).endswith("manifest.json: config.merge: expected mean, got max")
