"""`flmm convert`: the folder holds what the published file holds, and is bound to its LMM and SAM."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import SAM_CONFIG, save_llava, save_model, tiny_heads, tiny_sam

from flmm_cli import main as cli
from flmm_core.errors import LoadError
from flmm_core.loading.checkpoints import check_origin, lmm_shape, load_heads
from flmm_core.loading.model_info import model_info
from flmm_core.sam.checkpoints import load_sam
from flmm_core.weights.fingerprints import lmm_fingerprint, sam_fingerprint
from flmm_tabletop.sam_tiny import save_tiny_sam


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """An LMM, a SAM and published heads for them, and another SAM and another LMM of the same sizes."""
    folder = tmp_path_factory.mktemp("model")
    save_model(folder)
    save_llava(folder / "other_lmm", seed=5)
    save_tiny_sam(tiny_sam(seed=5), SAM_CONFIG, folder / "other_sam")
    publish(folder / "heads.pth")
    return folder


def publish(path, **sizes):
    state = tiny_heads(selector=False, presence=False, **sizes).trained_state()
    state = {key: value for key, value in state.items() if "pe_layer" not in key}
    torch.save({"state_dict": state, "meta": {}}, path)


def convert(root, out, *, heads="heads.pth"):
    words = ["convert", root / heads, out, "--lmm", root / "lmm", "--sam", root / "sam"]
    return cli.main([str(word) for word in words])


def test_the_folder_holds_the_same_heads(root, tmp_path, capsys):
    out = tmp_path / "new" / "heads"
    assert convert(root, out) == 0
    assert sorted(path.name for path in out.iterdir()) == ["config.json", "model.safetensors"]
    assert f"LMM: lmm, fingerprint {lmm_fingerprint(root / 'lmm')}" in capsys.readouterr().out
    shape = lmm_shape(root / "lmm")
    first, second = (load_heads(source, shape=shape, sam=load_sam(root / "sam")) for source in (root / "heads.pth", out))
    assert first.config == second.config
    expected, got = first.state_dict(), second.state_dict()
    assert expected.keys() == got.keys() and all(torch.equal(value, got[name]) for name, value in expected.items())
    # Number for number, and nothing of the frozen image encoder.
    stored, published = load_file(out / "model.safetensors"), torch.load(root / "heads.pth", weights_only=True)["state_dict"]
    assert all(torch.equal(stored[name], value) for name, value in published.items())
    assert not any("image_encoder" in name for name in stored)


def test_the_folder_is_bound_to_its_lmm_and_sam(root, tmp_path):
    assert convert(root, tmp_path) == 0
    origin = json.loads((tmp_path / "config.json").read_text())["origin"]
    assert origin == {
        "lmm": "lmm", "sam": "sam",
        "lmm_fingerprint": lmm_fingerprint(root / "lmm"), "sam_fingerprint": sam_fingerprint(root / "sam"),
        "image_tokens": 0,
    }  # fmt: skip
    check_origin(tmp_path, lmm=root / "lmm", sam=root / "sam")
    with pytest.raises(LoadError, match="expected the LMM that they were trained on, lmm with"):
        check_origin(tmp_path, lmm=root / "other_lmm", sam=root / "sam")
    with pytest.raises(LoadError, match="expected the SAM that they were trained on, sam with"):
        check_origin(tmp_path, lmm=root / "lmm", sam=root / "other_sam")
    assert model_info(tmp_path)[0].facts["SAM"] == f"sam, fingerprint {sam_fingerprint(root / 'sam')}"


def test_nothing_is_written_over_and_nothing_unfit_is_written(root, tmp_path, capsys):
    def fails(out, **options):
        assert convert(root, out, **options) == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        return line

    (tmp_path / "mine.txt").write_text("kept")
    assert "expected a folder that is empty or not there yet" in fails(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    publish(root / "wide.pth", heads=8)
    assert "got heads for 24 (3 layers" in fails(tmp_path / "out", heads="wide.pth")
    assert "expected a published .pth file, got a folder" in fails(tmp_path / "out", heads="heads")
    assert not (tmp_path / "out").exists()
