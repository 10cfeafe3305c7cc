"""Engines of the shipped heads on this GPU: TensorRT's plans are built, compared with PyTorch and kept; engines serve."""

import logging
from importlib.util import find_spec

import onnxruntime
import pytest
import torch

from flmm_core.engines import parity
from flmm_core.engines.export import export_networks
from flmm_core.engines.tensorrt_engine import TensorrtEngine
from flmm_core.pipeline import GroundingPipeline
from flmm_core.weights.sources import registered_parts

THERE = {
    "onnx": "CUDAExecutionProvider" in onnxruntime.get_available_providers(),
    "tensorrt": find_spec("tensorrt") is not None,
}


def need(backend):
    if not THERE[backend]:
        pytest.skip(f"needs {backend} with CUDA: `pip install -r requirements-gpu.txt`")


@pytest.fixture
def parts(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return registered_parts("flmm-tabletop")


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_plans_are_built_compared_and_kept(parts, tmp_path, caplog, gpu, precision):
    need("tensorrt")
    heads = GroundingPipeline.from_pretrained(**parts, device="cuda").heads
    export_networks(heads, tmp_path / "onnx", precision=precision)
    with caplog.at_level(logging.INFO, logger="flmm_core"):
        engine = TensorrtEngine(tmp_path / "onnx", heads, device=gpu, precision=precision)
    assert sum(record.getMessage().startswith("built ") for record in caplog.records) == 3
    parity.require(parity.measure(engine, heads, device=gpu), precision=precision, what="test")
    caplog.clear()
    with caplog.at_level(logging.INFO, logger="flmm_core"):
        TensorrtEngine(tmp_path / "onnx", heads, device=gpu, precision=precision)
    assert not [record for record in caplog.records if "buil" in record.getMessage()], "expected kept plans"


@pytest.mark.parametrize("backend", ["onnx", "tensorrt"])
def test_a_pipeline_on_an_engine_gives_the_same_masks(parts, backend):
    need(backend)
    pixels = torch.randint(0, 256, (240, 320, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)).numpy()
    options = {"device": "cuda", "presence_threshold": 0.0}
    masks = {}
    for kind in ("torch", backend):
        pipeline = GroundingPipeline.from_pretrained(**parts, heads_backend=kind, **options)
        assert pipeline.describe()["heads backend"].startswith(kind)
        phrases = pipeline.refer(pipeline.encode(pixels), ["the red mug", "the lemon", "the table"]).phrases
        masks[kind] = [phrase.mask for phrase in phrases]
    for one, other in zip(*masks.values(), strict=True):
        assert (one & other).sum() >= 0.999 * (one | other).sum()
