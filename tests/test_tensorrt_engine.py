"""What is done with TensorRT, on a stand-in that computes in ONNX Runtime; a GPU's own tests are in tests/gpu."""

import logging
import sys

import fake_tensorrt
import onnx
import onnx.numpy_helper
import pytest
import torch
from engine_checks import UntrainedHeads, compare
from tiny_models import tiny_heads

from flmm_cli.main import main
from flmm_core.engines import export, tensorrt_engine
from flmm_core.engines.attach import attach_backend
from flmm_core.engines.cache import engine_cache
from flmm_core.engines.names import NAMES
from flmm_core.engines.networks import NetworkSizes, ShapeLimits
from flmm_core.engines.tensorrt_engine import TensorrtEngine
from flmm_core.errors import EngineError

CPU = torch.device("cpu")


@pytest.fixture
def built(tmp_path, monkeypatch):
    """Networks that the stand-in has built; the CPU passes for a GPU."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.module())
    monkeypatch.setattr(tensorrt_engine, "_gpu", lambda device: "GPU (sm_90)")
    monkeypatch.setattr(tensorrt_engine, "_stream", lambda device: 7)
    fake_tensorrt.BUILT.clear()
    fake_tensorrt.CONFIGS.clear()
    return fake_tensorrt.BUILT


@pytest.mark.parametrize("phrases", [1, 8, 19])
def test_networks_compute_what_pytorch_computes(heads, folder, built, phrases):
    engine = TensorrtEngine(folder, heads, device=CPU)
    assert engine.description == "tensorrt 11.0, GPU (sm_90), fp32"
    compare(engine, heads, "unet", phrases=phrases, grid=(64, 40), tokens=1)
    compare(engine, heads, "sam_decoder", phrases=phrases, grid=(8, 8), tokens=5)
    compare(engine, heads, "sam_encoder", phrases=1, grid=(8, 8), tokens=1)


def test_heads_without_a_unet(untrained_folder, built):
    heads = UntrainedHeads()
    engine = TensorrtEngine(untrained_folder, heads, device=CPU)
    assert built == list(heads.networks)
    for phrases in (2, 19):
        compare(engine, heads, "sam_decoder", phrases=phrases, grid=(8, 8), tokens=1)


def test_plans_are_built_once_and_again_when_damaged(heads, folder, built, caplog):
    TensorrtEngine(folder, heads, device=CPU)
    assert built == list(NAMES)
    TensorrtEngine(folder, heads, device=CPU)
    assert built == list(NAMES)
    plans = sorted((engine_cache() / "plans").iterdir())
    assert [path.suffix for path in plans] == [".plan"] * 3 and plans[-1].name.startswith("unet-")
    plans[-1].write_bytes(plans[-1].read_bytes()[:-3])
    TensorrtEngine(folder, heads, device=CPU)
    assert built == [*NAMES, "unet"] and "expected a plan as it was written, got a damaged one" in caplog.text
    plan = b"of another world"
    tensorrt_engine._write_plan(plans[-1], plan)
    TensorrtEngine(folder, heads, device=CPU)
    assert built == [*NAMES, "unet", "unet"] and "TensorRT does not take the kept plan" in caplog.text
    assert sorted((engine_cache() / "plans").iterdir()) == plans


def with_other_weights(path):
    """An exported network with one weight changed, as an export of other heads would differ; that costs 10 s of CPU."""
    model = onnx.load(path)
    weight = next(one for one in model.graph.initializer if one.data_type == onnx.TensorProto.FLOAT)
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight) + 1, weight.name))
    return model


@pytest.mark.parametrize("change", ["gpu", "version", "limits", "weights"])
def test_plans_belong_to_gpu_version_shapes_and_weights(heads, folder, built, monkeypatch, tmp_path, change):
    TensorrtEngine(folder, heads, device=CPU)
    options = {}
    if change == "gpu":
        monkeypatch.setattr(tensorrt_engine, "_gpu", lambda device: "GPU (sm_120)")
    elif change == "version":
        sys.modules["tensorrt"].__version__ = "11.1"
    elif change == "limits":
        options["limits"] = ShapeLimits(side=128)
    else:
        heads = tiny_heads(seed=9).eval()
        monkeypatch.setattr(export, "_onnx_model", lambda *_: with_other_weights(folder / "unet.onnx"))
        export.export_networks(heads, tmp_path / "other", what=("unet",))
        folder, options = tmp_path / "other", {"networks": ("unet",)}
    TensorrtEngine(folder, heads, device=CPU, **options)
    expected = {"limits": ["unet"], "weights": ["unet"]}.get(change, list(NAMES))
    assert [name for name in built[3:] if name in expected] == expected


def test_single_precision_means_it(heads, folder, built):
    TensorrtEngine(folder, heads, device=CPU)
    assert [config.cleared for config in fake_tensorrt.CONFIGS] == [[fake_tensorrt.BuilderFlag.TF32]] * 3


def test_a_build_that_is_interrupted_leaves_nothing(heads, folder, built, monkeypatch):
    def interrupted(self, target):
        raise KeyboardInterrupt

    monkeypatch.setattr(tensorrt_engine.Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        TensorrtEngine(folder, heads, device=CPU)
    assert not list((engine_cache() / "plans").iterdir())


def test_a_build_says_how_far_it_is(heads, folder, built, monkeypatch, caplog):
    monkeypatch.setattr(tensorrt_engine, "_SAY_EVERY", 0.0)
    with caplog.at_level(logging.INFO, logger="flmm_core"):
        TensorrtEngine(folder, heads, device=CPU, networks=("unet",))
    lines = [record.getMessage() for record in caplog.records]
    assert lines[0] == "building unet for GPU (sm_90); this is done once ..."
    assert lines[1:5] == [f"building unet: {25 * i} %, about 0 s left" for i in (1, 2, 3, 4)]
    assert lines[5] == "TensorRT: a warning" and lines[6].startswith("built unet in ")


def test_shapes_beyond_the_limits_are_refused(heads, folder, built):
    engine = TensorrtEngine(folder, heads, device=CPU, limits=ShapeLimits(side=64, tokens=4))
    with pytest.raises(EngineError, match="expected maps of at most 64 x 64 cells, got 72 x 64"):
        engine.run("unet", NetworkSizes.of(heads).examples("unet", phrases=1, grid=(72, 64), tokens=1))
    with pytest.raises(EngineError, match="expected phrases of at most 4 tokens, got 5"):
        engine.run("sam_decoder", NetworkSizes.of(heads).examples("sam_decoder", phrases=1, grid=(8, 8), tokens=5))
    compare(engine, heads, "unet", phrases=1, grid=(64, 64), tokens=1)


def test_what_fails_says_so(heads, folder, built, monkeypatch, tmp_path):
    monkeypatch.setattr(fake_tensorrt._Context, "execute_async_v3", lambda *_: False)
    engine = TensorrtEngine(folder, heads, device=CPU)
    with pytest.raises(EngineError, match=r"tensorrt 11\.0, GPU \(sm_90\), fp32: expected unet to run, got a failure"):
        engine.run("unet", NetworkSizes.of(heads).examples("unet", phrases=1, grid=(64, 64), tokens=1))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "fresh"))
    monkeypatch.setattr(fake_tensorrt.Builder, "build_serialized_network", lambda *_: None)
    with pytest.raises(EngineError, match=r"unet\.onnx: expected a network that TensorRT 11\.0 builds, got a failure"):
        TensorrtEngine(folder, heads, device=CPU)
    monkeypatch.setattr(fake_tensorrt.OnnxParser, "parse_from_file", lambda *_: False)
    with pytest.raises(EngineError, match=r"unet\.onnx: expected an ONNX model that TensorRT 11\.0 takes"):
        TensorrtEngine(folder, heads, device=CPU)


def test_it_serves_after_it_was_compared(heads, folder, built, monkeypatch):
    served = tiny_heads().eval()
    served.load_state_dict(heads.state_dict())
    attach_backend(served, "tensorrt", device=CPU, folder=str(folder))
    assert served.mask_head.engine is not None
    right = TensorrtEngine.run
    monkeypatch.setattr(TensorrtEngine, "run", lambda *given: tuple(-one for one in right(*given)))
    with pytest.raises(EngineError, match=r"heads_backend tensorrt 11\.0, GPU \(sm_90\), fp32: expected unet's logits within"):
        attach_backend(served, "tensorrt", device=CPU, folder=str(folder))


def test_without_tensorrt_or_a_gpu(heads, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt.module())
    with pytest.raises(EngineError, match="heads_backend tensorrt: expected device cuda, got cpu"):
        TensorrtEngine(folder, heads, device=CPU)
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineError, match=r"expected the package tensorrt, got .*; pip install 'flmm_ros\[gpu\]'"):
        TensorrtEngine(folder, heads, device=CPU)


def test_the_command_that_builds(tiny_model, kept_models, tmp_path, built, monkeypatch, capsys):
    options = [part for name, value in tiny_model.items() for part in (f"--{name}", value)]
    out = tmp_path / "out"
    assert main(["export", *options, "--out", str(out), "--build-engines"]) == 2
    assert "device: expected one that this machine has (cpu), got 'cuda'" in capsys.readouterr().err
    monkeypatch.setattr("flmm_cli.export.GPU", "cpu")
    assert main(["export", *options, "--out", str(out), "--build-engines"]) == 0
    assert built == list(NAMES)
    assert "tensorrt 11.0, GPU (sm_90), fp32 unet logits: largest difference" in capsys.readouterr().out
