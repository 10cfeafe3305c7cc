"""Agreement with reference data that the published method computed on tiny models, by the command that everybody has.

The data lie outside the repository: in ``$FLMM_GOLDEN``, or in ``../shared/golden`` next to it.
"""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from flmm_core.verify import cases, main, verify_case

GOLDEN = Path(os.environ.get("FLMM_GOLDEN") or Path(__file__).resolve().parents[2] / "shared" / "golden")

pytestmark = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"no reference data at {GOLDEN}; set FLMM_GOLDEN")

CASES = cases([GOLDEN]) if GOLDEN.is_dir() else []
STAGES = {
    "pixel values", "image features", "token ids", "token positions", "image positions", "hidden states",
    "merged maps", "text tokens", "U-Net output", "un-padded logits", "boxes", "SAM logits", "mask IoU",
}  # fmt: skip


@pytest.mark.parametrize("folder", CASES, ids=[folder.name for folder in CASES])
def test_every_stage(folder):
    checks = verify_case(folder).checks
    exceeded = [f"{c.sample} {c.stage} {c.difference} > {c.tolerance} ({c.note})" for c in checks if not c.passed]
    assert not exceeded
    if (folder / "lmm").is_dir():
        for sample in json.loads((folder / "inputs.json").read_text())["samples"]:
            assert {c.stage for c in checks if c.sample == sample["name"]} >= STAGES


def test_a_difference_is_found(tmp_path, capsys):
    folder = shutil.copytree(GOLDEN / "unet_base64", tmp_path / "unet")
    assert main([str(tmp_path)]) == 0
    outputs = dict(np.load(folder / "outputs.npz"))
    name = sorted(outputs)[-1]
    outputs[name] = outputs[name].copy()
    outputs[name].flat[0] += 2e-4
    np.savez(folder / "outputs.npz", **outputs)
    capsys.readouterr()
    assert main([str(folder)]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if name in line]
    assert len(lines) == 1 and "U-Net output" in lines[0] and "EXCEEDED" in lines[0] and "tolerance   1e-04" in lines[0]
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
    assert "case: not run: " in (out := capsys.readouterr().out)
    assert "LMM family: expected one of " in out and "got 'nobody'" in out


def test_no_reference_data(tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        main([str(tmp_path)])
    assert error.value.code == 2
    assert "expected reference data" in capsys.readouterr().err
