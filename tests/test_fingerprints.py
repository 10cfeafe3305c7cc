"""Fingerprints of weights and files, heads that know what they were trained on, and manifests of caches."""

import json
import time

import pytest
import torch
from huggingface_hub import errors as hub
from safetensors.torch import save_file
from tiny_models import SAM_CONFIG, save_llava, save_model, tiny_heads, tiny_sam
from transformers import LlavaForConditionalGeneration

from flmm_core.config import GroundingConfig
from flmm_core.errors import LoadError
from flmm_core.loading.checkpoints import HeadsOrigin, check_origin, load_lmm, save_heads
from flmm_core.pipeline import GroundingPipeline
from flmm_core.weights.cache_manifest import require_manifest
from flmm_core.weights.fingerprints import (
    files_fingerprint,
    lmm_fingerprint,
    sam_fingerprint,
    settings_fingerprint,
)
from flmm_tabletop.sam_tiny import save_tiny_sam


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A model whose heads know their origin, and another LMM and SAM of the same sizes."""
    folder = tmp_path_factory.mktemp("model")
    save_model(folder)
    save_heads(tiny_heads(), folder / "heads", origin=HeadsOrigin.of(lmm=folder / "lmm", sam=folder / "sam"))
    save_llava(folder / "other_lmm", seed=5)
    save_tiny_sam(tiny_sam(seed=5), SAM_CONFIG, folder / "other_sam")
    return folder


# --- weights ---------------------------------------------------------------------------------------------------------------


def weights(folder, **tensors):
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_any_change_of_the_weights_is_seen(tmp_path):
    small, large = torch.arange(6.0).reshape(2, 3), torch.zeros(100_000)
    first = lmm_fingerprint(weights(tmp_path / "a", small=small, large=large))
    assert first == lmm_fingerprint(weights(tmp_path / "b", large=large, small=small)) and len(first) == 64
    changed_value, last_value = small.clone(), large.clone()
    changed_value[1, 1], last_value[-1] = 9, 9
    others = [
        {"small": changed_value, "large": large},
        {"small": small, "large": last_value},
        {"small": small, "large": large + 1},
        {"small": small.reshape(3, 2), "large": large},
        {"small": small.view(torch.int32), "large": large},
        {"other": small, "large": large},
        {"small": small},
    ]
    found = [lmm_fingerprint(weights(tmp_path / "c", **tensors)) for tensors in others]
    assert len({first, *found}) == 1 + len(others)


def test_sizes_of_shards_do_not_count(root, tmp_path):
    model = LlavaForConditionalGeneration.from_pretrained(root / "lmm")
    model.save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1 and not (tmp_path / "model.safetensors").exists()
    assert lmm_fingerprint(tmp_path) == lmm_fingerprint(root / "lmm") != lmm_fingerprint(root / "other_lmm")
    next(tmp_path.glob("*.safetensors")).unlink()
    with pytest.raises(ValueError, match=r"expected the weights model-0.*\.safetensors that .*\.index\.json lists"):
        lmm_fingerprint(tmp_path)


def test_the_number_format_of_loading_does_not_count(root, tmp_path):
    before = lmm_fingerprint(root / "lmm")
    load_lmm(root / "lmm", device=torch.device("cpu"), dtype=torch.bfloat16)
    assert lmm_fingerprint(str(root / "lmm")) == before


@pytest.mark.timing
def test_large_files_are_sampled(tmp_path):
    """A file of 15 GB that has a header and a hole takes a moment."""
    count = 100
    size = 150_000_000
    header = {f"t{i}": {"dtype": "U8", "shape": [size], "data_offsets": [i * size, (i + 1) * size]} for i in range(count)}
    text = json.dumps(header).encode()
    with (tmp_path / "model.safetensors").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + count * size)
    start = time.process_time()
    lmm_fingerprint(tmp_path)
    assert time.process_time() - start < 2


def test_pth_files(tmp_path):
    state = {"a": torch.arange(5000.0), "b": torch.ones(3, dtype=torch.bfloat16), "c": torch.tensor(2), "d": torch.zeros(0)}
    torch.save(state, tmp_path / "sam.pth")
    torch.save({"state_dict": state}, tmp_path / "nested.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    first, nested, old = (sam_fingerprint(tmp_path / f"{name}.pth") for name in ("sam", "nested", "old"))
    assert first == nested == old
    state["b"][1] = 0
    torch.save(state, tmp_path / "sam.pth")
    assert sam_fingerprint(tmp_path / "sam.pth") != first
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert lmm_fingerprint(tmp_path) == sam_fingerprint(tmp_path / "sam.pth")


def test_weights_of_a_name_on_the_hub(monkeypatch, root):
    def from_hub(name, file):
        path = root / "lmm" / file
        if name != "owner/model" or not path.is_file():
            raise hub.LocalEntryNotFoundError("not there")
        return str(path)

    monkeypatch.setattr("flmm_core.weights.fingerprints.hf_hub_download", from_hub)
    assert lmm_fingerprint("owner/model") == lmm_fingerprint(root / "lmm")
    check_origin(root / "heads", lmm="owner/model", sam=root / "sam")
    with pytest.raises(LoadError, match="LMM owner/unknown: expected a folder, a downloaded model"):
        check_origin(root / "heads", lmm="owner/unknown", sam=root / "sam")


def test_no_weights(tmp_path):
    with pytest.raises(ValueError, match=r"expected weights \(model.safetensors.index.json, .*\), got none of them"):
        lmm_fingerprint(tmp_path)
    path = weights(tmp_path, a=torch.zeros(5000)) / "model.safetensors"
    whole = path.read_bytes()
    for keep, words in (
        (4, "expected a whole file of safetensors, got a damaged one .*header too small"),
        (50, "expected a whole file of safetensors, got a damaged one .*header"),
        (len(whole) - 1, "expected a whole file of safetensors, got a damaged one .*incomplete"),
    ):
        path.write_bytes(whole[:keep])
        with pytest.raises(ValueError, match=words):
            lmm_fingerprint(tmp_path)


# --- heads -----------------------------------------------------------------------------------------------------------------


def refused(root, **parts):
    given = {part: root / part for part in ("heads", "lmm", "sam")} | parts
    with pytest.raises(LoadError) as error:
        GroundingPipeline.from_config(GroundingConfig(**{part: str(path) for part, path in given.items()}, device="cpu"))
    assert "\n" not in str(error.value)
    return str(error.value)


def test_heads_are_loaded_with_what_they_were_trained_on(root):
    origin = json.loads((root / "heads" / "config.json").read_text())["origin"]
    assert origin == {
        "lmm": "lmm", "sam": "sam",
        "lmm_fingerprint": lmm_fingerprint(root / "lmm"), "sam_fingerprint": sam_fingerprint(root / "sam"),
        "image_tokens": 0,
    }  # fmt: skip
    GroundingPipeline.from_pretrained(root / "lmm", root / "heads", root / "sam", device="cpu")
    line = refused(root, lmm=root / "other_lmm")
    assert line == (
        f"heads {root / 'heads'}: expected the LMM that they were trained on, lmm with fingerprint"
        f" {lmm_fingerprint(root / 'lmm')[:12]}, got {root / 'other_lmm'} with fingerprint"
        f" {lmm_fingerprint(root / 'other_lmm')[:12]}"
    )
    line = refused(root, sam=root / "other_sam")
    assert f"expected the SAM that they were trained on, sam with fingerprint {sam_fingerprint(root / 'sam')[:12]}" in line


def test_heads_without_origin_are_not_checked(root, tmp_path):
    save_heads(tiny_heads(), tmp_path / "unknown")
    save_heads(tiny_heads(), tmp_path / "named", origin=HeadsOrigin(lmm="lmm", sam="sam"))
    config = json.loads((tmp_path / "named" / "config.json").read_text())
    config["origin"] = {"lmm": "lmm", "sam": "sam"}  # as before there were fingerprints
    (tmp_path / "named" / "config.json").write_text(json.dumps(config))
    published = {
        name: value
        for name, value in tiny_heads(selector=False, presence=False).trained_state().items()
        if "pe_layer" not in name
    }
    torch.save(published, tmp_path / "heads.pth")
    for heads in ("unknown", "named", "heads.pth"):
        check_origin(tmp_path / heads, lmm=root / "other_lmm", sam=root / "other_sam")
        with pytest.raises(LoadError, match=rf"{heads}: expected image_tokens 0, the sizes of the LMM's .* got 9$"):
            check_origin(tmp_path / heads, lmm=root / "other_lmm", sam=root / "other_sam", image_tokens=9)
    for heads, sam in ((tmp_path / "none", root / "sam"), (root / "heads", tmp_path / "none")):
        with pytest.raises(LoadError, match=r"none: expected an existing file or folder, got nothing there"):
            check_origin(heads, lmm=root / "lmm", sam=sam)
    # A part of the origin that is known is checked.
    save_heads(tiny_heads(), tmp_path / "half", origin=HeadsOrigin(sam="s", sam_fingerprint=sam_fingerprint(root / "sam")))
    check_origin(tmp_path / "half", lmm=root / "other_lmm", sam=root / "sam")
    with pytest.raises(LoadError, match="expected the SAM that they were trained on, s with"):
        check_origin(tmp_path / "half", lmm=root / "lmm", sam=root / "other_sam")


# --- files and settings ----------------------------------------------------------------------------------------------------


def test_files_and_settings(tmp_path):
    one, two = tmp_path / "1.png", tmp_path / "2.png"
    one.write_bytes(bytes(100_000))
    two.write_bytes(b"two")
    first = files_fingerprint([one, two])
    assert first == files_fingerprint([one, two]) != files_fingerprint([two, one])
    one.write_bytes(bytes(99_999) + b"\1")
    assert files_fingerprint([one, two]) != first
    one.write_bytes(bytes(100_001))
    assert files_fingerprint([one, two]) != first
    assert settings_fingerprint({"a": 1, "b": [2]}) == settings_fingerprint({"b": [2], "a": 1})
    assert settings_fingerprint({"a": 1, "b": [2]}) != settings_fingerprint({"a": 1, "b": [3]})


# --- manifests -------------------------------------------------------------------------------------------------------------


def test_a_cache_is_used_for_what_it_was_made_from_only(tmp_path):
    folder = tmp_path / "deep" / "cache"
    made_from = {"lmm": "abc", "turns": 4, "share": 0.1}
    require_manifest(folder, made_from)
    (folder / "000.pt").write_text("cached")
    require_manifest(folder, dict(reversed(made_from.items())))
    assert sorted(path.name for path in folder.iterdir()) == ["000.pt", "manifest.json"]
    for other, words in (
        ({**made_from, "turns": 6}, "turns: expected 6, got 4"),
        ({**made_from, "lmm": "4"}, 'lmm: expected "4", got "abc"'),
        ({"lmm": "abc", "turns": 4}, "share: expected no such entry, got 0.1"),
        ({**made_from, "seed": 0}, "seed: expected 0, got no such entry"),
    ):
        with pytest.raises(ValueError) as error:
            require_manifest(folder, other)
        assert str(error.value) == f"{folder / 'manifest.json'}: {words}; delete {folder} to recreate them"
    assert (folder / "000.pt").exists()
    (folder / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest.json: expected JSON, got .*; delete"):
        require_manifest(folder, made_from)
    (folder / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"cache: expected manifest.json beside cached files, got none; delete"):
        require_manifest(folder, made_from)
    (folder / "000.pt").unlink()
    require_manifest(folder, made_from)
