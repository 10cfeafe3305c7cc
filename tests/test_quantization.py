"""LMMs of fewer bits: what is quantized, that the recorder and the prefix change nothing in them, and what is refused."""

import importlib.util
from pathlib import Path

import pytest
import torch
from tiny_models import random_image

from flmm_cli.main import main
from flmm_core.errors import LoadError
from flmm_core.families import load_options
from flmm_core.families.load_options import LoadOptions
from flmm_core.loading.checkpoints import load_lmm, load_plain_lmm
from flmm_core.pipeline import GroundingPipeline
from flmm_core.verification.frozen_report import verify_frozen
from flmm_core.weights.sources import registered_parts

CPU = torch.device("cpu")
KINDS = [("int4", torch.float32, "Linear4bit"), ("int8", torch.bfloat16, "Linear8bitLt")]


@pytest.fixture(scope="module")
def folder() -> Path:
    """The shipped model: matrices of tiny ones are too small for the CPU's kernels."""
    return Path(registered_parts("flmm-tabletop")["lmm"])


@pytest.mark.parametrize(("quantization", "dtype", "kind"), KINDS)
def test_the_decoder_alone_has_fewer_bits(folder, quantization, dtype, kind):
    model = load_plain_lmm(folder, device=CPU, dtype=dtype, quantization=quantization).model
    linear = {name: type(module).__name__ for name, module in model.named_modules() if "Linear" in type(module).__name__}
    quantized = {name for name, found in linear.items() if found == kind}
    assert quantized and quantized == {name for name in linear if "language_model.layers" in name}
    assert {found for name, found in linear.items() if name not in quantized} == {"Linear"}


@pytest.mark.parametrize(("quantization", "dtype", "kind"), KINDS)
def test_what_is_left_is_frozen(folder, quantization, dtype, kind):
    loaded = load_plain_lmm(folder, device=CPU, dtype=dtype, quantization=quantization)
    images = {str(seed): random_image(seed=seed) for seed in range(2)}
    report = verify_frozen(loaded, images, ("where is the lemon?", "what is there?"), max_new_tokens=6)
    assert report.frozen, report.summary()
    assert any(value.dtype in (torch.uint8, torch.int8) for value in loaded.model.parameters())
    assert quantization == "int8" or any(name.endswith(".absmax") for name in report.before)


def test_maps_are_near_those_of_all_bits(folder):
    maps = {}
    for quantization in ("none", "int4"):
        lmm = load_lmm(folder, device=CPU, dtype=torch.float32, quantization=quantization)
        trace = lmm.teacher_force(lmm.encode_image(random_image()), "where?", "The lemon.")
        maps[quantization] = trace.merged_attention([(0, 2)])
    difference = (maps["int4"] - maps["none"]).abs().mean() / maps["none"].mean()
    assert 1e-4 < difference < 0.2


def test_a_pipeline_of_fewer_bits_answers(folder):
    parts = registered_parts("flmm-tabletop")
    pipeline = GroundingPipeline.from_pretrained(**parts, device="cpu", quantization="int4", presence_threshold=0.0)
    answer = pipeline.refer(pipeline.encode(random_image()), ["the lemon"])
    assert answer.phrases[0].mask.shape == (48, 64)


def test_the_command_that_proves_it(folder, tmp_path, capsys):
    (tmp_path / "images").mkdir()
    random_image().save(tmp_path / "images" / "a.png")
    (tmp_path / "questions").write_text("where is the lemon?\nwhat is there?\n")
    words = ["--images", str(tmp_path / "images"), "--questions", str(tmp_path / "questions"), "--max-new-tokens", "3"]
    assert main(["verify-frozen", str(folder), "--quantization", "int4", "--device", "cpu", *words]) == 0
    assert f"{folder} in float32, int4 on cpu: frozen" in capsys.readouterr().out


def test_what_is_refused(folder, monkeypatch):
    with pytest.raises(LoadError, match="quantization int8: expected dtype bfloat16 or float16, got float32"):
        load_lmm(folder, device=CPU, dtype=torch.float32, quantization="int8")
    find = importlib.util.find_spec
    monkeypatch.setattr(load_options, "find_spec", lambda name: None if name == "bitsandbytes" else find(name))
    with pytest.raises(LoadError, match=r"expected the package bitsandbytes, got none; pip install 'flmm_ros\[quantization\]'"):
        load_lmm(folder, device=CPU, dtype=torch.float32, quantization="int4")


def test_a_model_goes_straight_to_a_gpu():
    assert "device_map" not in LoadOptions(device="cpu").given
    assert LoadOptions(device="cuda:1").given["device_map"] == {"": torch.device("cuda:1")}
