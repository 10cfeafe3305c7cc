"""Exported networks: what they compute, what they belong to, and what is refused before it may serve."""

import os
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from engine_checks import UntrainedHeads, compare
from tiny_models import random_image, tiny_heads

from flmm_cli.main import main
from flmm_core.engines import attach as attach_module
from flmm_core.engines import parity
from flmm_core.engines.attach import attach_backend, cache_folder
from flmm_core.engines.export import export_networks, read_manifest
from flmm_core.engines.networks import NetworkSizes, module_of, weights_hash
from flmm_core.engines.onnx_engine import OnnxEngine
from flmm_core.engines.tensorrt_engine import _write_plan
from flmm_core.errors import EngineError
from flmm_core.pipeline import GroundingPipeline
from flmm_core.sam.refiner_config import RefinerConfig

CPU = torch.device("cpu")


@pytest.fixture
def copy(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("phrases", [1, 2, 7])
@pytest.mark.parametrize("grid", [(8, 8), (64, 64), (64, 24), (40, 136)])
def test_the_unet_takes_any_grid_and_number_of_phrases(heads, folder, phrases, grid):
    engine = OnnxEngine(folder, heads, device=CPU)
    compare(engine, heads, "unet", phrases=phrases, grid=grid, tokens=1, seed=phrases)


@pytest.mark.parametrize("phrases", [1, 2, 8])
@pytest.mark.parametrize("tokens", [1, 3, 40])
def test_the_decoder_takes_any_number_of_phrases_and_tokens(heads, folder, phrases, tokens):
    engine = OnnxEngine(folder, heads, device=CPU)
    compare(engine, heads, "sam_decoder", phrases=phrases, grid=(8, 8), tokens=tokens, seed=tokens)


def test_the_encoder(heads, folder):
    compare(OnnxEngine(folder, heads, device=CPU), heads, "sam_encoder", phrases=1, grid=(8, 8), tokens=1)


def test_inputs_that_are_no_contiguous_float32(heads, folder):
    engine = OnnxEngine(folder, heads, device=CPU)
    (maps,) = NetworkSizes.of(heads).examples("unet", phrases=2, grid=(64, 48), tokens=1)
    (expected,) = engine.run("unet", (maps,))
    turned = maps.double().transpose(2, 3).contiguous().transpose(2, 3)
    assert torch.equal(engine.run("unet", (turned,))[0], expected)


@pytest.mark.parametrize("phrases", [1, 3, 8])
def test_heads_without_a_unet_have_a_decoder_of_points(untrained_folder, phrases):
    """On SAMs of segment-anything's own kind; the choice is among three masks."""
    heads, manifest = UntrainedHeads(), read_manifest(untrained_folder)
    assert list(manifest["networks"]) == ["sam_encoder", "sam_decoder"]
    assert manifest["networks"]["sam_decoder"]["inputs"] == ["embedding", "masks", "boxes", "points", "labels"]
    engine = OnnxEngine(untrained_folder, heads, device=CPU)
    compare(engine, heads, "sam_decoder", phrases=phrases, grid=(8, 8), tokens=1)
    if phrases == 1:
        compare(engine, heads, "sam_encoder", phrases=1, grid=(8, 8), tokens=1)


def test_points_reach_the_engine(untrained_folder):
    """Of three phrases the second has no positive cell, so no points."""
    heads, plain = UntrainedHeads(), UntrainedHeads()
    attach_backend(heads, "onnx", device=CPU, folder=str(untrained_folder))
    heads.sam.decoder_network = None
    coarse, none = torch.randn(3, 6, 8), [torch.zeros(0, 64)] * 3
    coarse[1] = -1.0
    image = plain.sam.encode_image(np.asarray(random_image()))
    with torch.no_grad():
        got, wanted = (one.sam(image, coarse, none).low_res for one in (heads, plain))
    torch.testing.assert_close(got, wanted, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("other", [{"points": 2}, {"points": 0}, {"use_text": True}, {"multimask": False}], ids=str)
def test_networks_of_other_prompts_are_told_apart(untrained_folder, other):
    one, another = UntrainedHeads(), UntrainedHeads(**other)
    assert cache_folder(one, "fp32") != cache_folder(another, "fp32")
    with pytest.raises(EngineError, match=r"engines .*: expected (points|prompts|proposals) .*, got .*; write it by"):
        OnnxEngine(untrained_folder, another, device=CPU)


def test_networks_that_heads_do_not_have(tmp_path):
    with pytest.raises(ValueError, match="what: expected some of sam_encoder, sam_decoder, got unet"):
        export_networks(UntrainedHeads(), tmp_path / "out", what=("unet",))


def test_half_precision_is_near(heads, kept_models, tmp_path):
    export_networks(heads, tmp_path / "half", precision="fp16")
    engine = OnnxEngine(tmp_path / "half", heads, device=CPU, precision="fp16")
    found = parity.measure(engine, heads, device=CPU)
    parity.require(found, precision="fp16", what="test")
    assert max(one.difference for one in found) > 1e-5, "expected rounding to half precision"
    with pytest.raises(EngineError, match="expected precision fp32, got fp16"):
        OnnxEngine(tmp_path / "half", heads, device=CPU)


# --- serving ---------------------------------------------------------------------------------------------------------------


def test_a_pipeline_on_onnx_gives_the_same_masks(tiny_model, cache, kept_models, monkeypatch):
    masks, texts = {}, {}
    options = {"device": "cpu", "presence_threshold": 0.0}
    for backend in ("torch", "onnx"):
        pipeline = GroundingPipeline.from_pretrained(**tiny_model, heads_backend=backend, **options)
        for size in ((50, 70), (64, 40)):
            image = pipeline.encode(random_image(*size))
            masks[backend, size] = [phrase.mask for phrase in pipeline.refer(image, ["red mug", "the lemon", "a"]).phrases]
        texts[backend] = pipeline.chat(image, "where is the lemon?", max_new_tokens=8).text
    assert texts["onnx"] == texts["torch"] != ""
    for (_, size), found in masks.items():
        for mask, other in zip(found, masks["torch", size], strict=True):
            assert (mask & other).sum() >= 0.999 * (mask | other).sum()
    # Nothing is exported again, and the engine is really in use.
    monkeypatch.setattr(attach_module, "export_networks", lambda *_, **__: pytest.fail("expected the kept networks"))
    again = GroundingPipeline.from_pretrained(**tiny_model, heads_backend="onnx", **options)
    monkeypatch.setattr(again.heads.sam, "decoder_network", None)
    monkeypatch.setattr(again.heads.mask_head, "network", None)
    image = again.encode(random_image(50, 70))
    assert np.array_equal(again.refer(image, ["red mug", "the lemon", "a"]).phrases[0].mask, masks["onnx", (50, 70)][0])


def test_no_phrases_reach_no_network(heads, folder):
    served = tiny_heads().eval()
    served.load_state_dict(heads.state_dict())
    attach_backend(served, "onnx", device=CPU, folder=str(folder))
    image = served.sam.encode_image(np.asarray(random_image()))
    assert served.mask_head(torch.zeros(0, 12, 4, 6)).shape == (0, 42, 64)
    assert served.sam(image, torch.zeros(0, 42, 64), []).low_res.shape[0] == 0


def test_damaged_networks_in_the_cache_are_made_again(heads, folder, cache, kept_models):
    kept = cache_folder(heads, "fp32")
    shutil.copytree(folder, kept)
    (kept / "unet.onnx.data").write_bytes(b"cut")
    attach_backend(tiny_heads().eval(), "onnx", device=CPU)
    assert (kept / "unet.onnx.data").stat().st_size > 1000
    assert not [path for path in kept.parent.iterdir() if path != kept], "expected nothing left of unfinished exports"


# --- refusals --------------------------------------------------------------------------------------------------------------


def test_networks_of_other_heads_are_refused(heads, folder):
    other = tiny_heads(seed=7).eval()
    own, theirs = (weights_hash(module_of(one, "unet"))[:12] for one in (other, heads))
    assert own != theirs
    with pytest.raises(EngineError) as error:
        OnnxEngine(folder, other, device=CPU)
    assert str(error.value) == (
        f"engines {folder}/unet.onnx: expected the unet of the heads and SAM in use (weights {own}), got another one's (weights"
        f" {theirs}); write it by `flmm export`"
    )
    with torch.no_grad():
        other.load_state_dict(heads.state_dict())
        OnnxEngine(folder, other, device=CPU)
        other.sam.model.mask_decoder.iou_token.weight += 1
    with pytest.raises(EngineError, match=r"sam_decoder\.onnx: expected the sam_decoder of the heads and SAM in use"):
        OnnxEngine(folder, other, device=CPU)


def test_files_that_cannot_be_used(heads, copy, tmp_path):
    with pytest.raises(EngineError, match=r"expected exported networks with manifest\.json, got none"):
        OnnxEngine(tmp_path / "none", heads, device=CPU)
    (copy / "unet.onnx").write_bytes((copy / "unet.onnx").read_bytes()[:-9])
    with pytest.raises(EngineError, match=r"unet\.onnx: expected the file as it was exported, got a changed or damaged one"):
        OnnxEngine(copy, heads, device=CPU)
    (copy / "unet.onnx").unlink()
    with pytest.raises(EngineError, match=r"expected unet\.onnx, got none"):
        OnnxEngine(copy, heads, device=CPU)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(EngineError, match="expected a folder that is empty or holds an earlier export"):
        export_networks(heads, tmp_path / "mine")
    with pytest.raises(ValueError, match="what: expected some of unet, sam_encoder, sam_decoder, got sam"):
        export_networks(heads, tmp_path / "other", what=("sam",))


def test_an_export_that_fails_leaves_nothing(heads, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.onnx, "export", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        export_networks(heads, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_providers_and_packages_that_are_not_there(heads, folder, monkeypatch):
    with pytest.raises(EngineError) as error:
        OnnxEngine(folder, heads, device=torch.device("cuda"))
    assert "expected ONNX Runtime with CUDAExecutionProvider, got one with" in str(error.value)
    assert "pip install 'flmm_ros[gpu]'" in str(error.value)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(EngineError, match=r"expected the package onnxruntime, got none; pip install 'flmm_ros\[onnx\]'"):
        OnnxEngine(folder, heads, device=CPU)


@pytest.mark.parametrize("spoil", [lambda value: value * 1.01, lambda value: value * float("nan"), lambda value: -value])
def test_an_engine_that_computes_something_else_may_not_serve(heads, folder, monkeypatch, spoil):
    right = OnnxEngine.run

    def wrong(self, network, inputs):
        outputs = right(self, network, inputs)
        return (spoil(outputs[0]), *outputs[1:]) if network == "sam_decoder" else outputs

    monkeypatch.setattr(OnnxEngine, "run", wrong)
    served = tiny_heads().eval()
    with pytest.raises(EngineError, match=r"expected sam_decoder's low_res within 0\.001 of PyTorch's and an IoU of at least"):
        attach_backend(served, "onnx", device=CPU, folder=str(folder))
    assert served.sam.decoder_engine is None


def test_refiners_that_leave_prompts_out_have_no_engine(tmp_path):
    heads = tiny_heads().eval()
    heads.sam.config = RefinerConfig(use_box=False)
    with pytest.raises(ValueError, match="expected a refiner that uses mask and box"):
        export_networks(heads, tmp_path / "out")


def test_the_command(tiny_model, kept_models, tmp_path, capsys):
    options = [part for name, value in tiny_model.items() for part in (f"--{name}", value)]
    assert main(["export", *options, "--out", str(tmp_path / "out"), "--what", "unet,sam_encoder"]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("unet logits: largest difference ") and printed[0].endswith("IoU 1.0000")
    assert printed[-1] == f"export: {tmp_path / 'out'}"
    manifest = read_manifest(tmp_path / "out")
    assert manifest["networks"]["unet"]["measured"]["logits"]["difference"] < 1e-3
    assert manifest["networks"]["unet"]["inputs"] == ["maps"] and manifest["sizes"]["channels"] == 12
    assert main(["export", *options, "--out", str(tmp_path / "out"), "--what", "unet,sam"]) == 2
    assert "--what: expected some of unet,sam_encoder,sam_decoder, got sam" in capsys.readouterr().err


# --- several processes, full disks, other users ------------------------------------------------------------------------------


def test_several_first_starts_export_once(heads, folder, cache, kept_models, monkeypatch, caplog):
    exports, export = [], attach_module.export_networks
    monkeypatch.setattr(attach_module, "export_networks", lambda *args, **how: exports.append(1) or export(*args, **how))
    with ThreadPoolExecutor(4) as pool, caplog.at_level("INFO", "flmm_core"):
        descriptions = list(pool.map(lambda _: attach_backend(copy_of(heads), "onnx", device=CPU).description, range(4)))
    assert len(descriptions) == 4 and len(exports) == 1
    assert caplog.text.count("this is done once") == caplog.text.count("exporting sam_decoder (3 of 3)") == 1


def copy_of(heads):
    other = tiny_heads().eval()
    other.load_state_dict(heads.state_dict())
    return other


def test_a_cache_that_cannot_be_written(heads, folder, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(EngineError) as error:
        attach_backend(copy_of(heads), "onnx", device=CPU)
    place = tmp_path / "file" / "flmm_ros" / "engines"
    assert str(error.value).startswith(f"engines {place}/") and "expected a cache that can be written, got [Errno 20]" in str(
        error.value
    )
    assert "set XDG_CACHE_HOME" in str(error.value) and "flmm export" in str(error.value)


def test_a_cache_that_can_only_be_read_serves(heads, folder, cache, monkeypatch):
    shutil.copytree(folder, cache_folder(heads, "fp32"))
    monkeypatch.setattr(attach_module, "cache_lock", lambda: pytest.fail("expected a cache that is only read"))
    assert attach_backend(copy_of(heads), "onnx", device=CPU).description.startswith("onnx")


def test_what_is_exported_can_be_read_by_others(heads, kept_models, tmp_path):
    before = os.umask(0o022)
    try:
        export_networks(heads, tmp_path / "out", what=("unet",))
    finally:
        os.umask(before)
    assert {file.name: oct(file.stat().st_mode & 0o777) for file in (tmp_path / "out").iterdir()} == dict.fromkeys(
        ("manifest.json", "unet.onnx", "unet.onnx.data"), "0o644"
    )
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o755


def test_an_export_that_differs_leaves_the_earlier_one(heads, copy, kept_models, monkeypatch):
    before = {file.name: file.read_bytes() for file in copy.iterdir()}
    right = OnnxEngine.run
    monkeypatch.setattr(OnnxEngine, "run", lambda *args: tuple(value * 2 for value in right(*args)))
    with pytest.raises(EngineError, match="PyTorch's"):
        attach_module.export_checked(heads, copy, what=("unet",))
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == before


def test_a_plan_that_cannot_be_kept_is_still_used(tmp_path, caplog):
    (tmp_path / "file").touch()
    _write_plan(tmp_path / "file" / "unet.plan", b"plan")
    assert "the plan cannot be kept and is built again at the next start ([Errno" in caplog.text
    before = os.umask(0o022)
    try:
        _write_plan(tmp_path / "plans" / "unet.plan", b"plan")
    finally:
        os.umask(before)
    assert (tmp_path / "plans" / "unet.plan").stat().st_mode & 0o777 == 0o644
