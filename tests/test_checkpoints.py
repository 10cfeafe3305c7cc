"""Strict loading: what fits loads exactly, everything else is one clear line."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from tiny_models import SAM_CONFIG, save_llava, save_model, tiny_heads, tiny_sam
from transformers.utils import logging as transformers_logging

from flmm_core.errors import LoadError
from flmm_core.families import LmmShape
from flmm_core.loading.checkpoints import HeadsOrigin, lmm_shape, load_heads, load_lmm, save_heads
from flmm_core.sam import checkpoints as sam_checkpoints
from flmm_core.sam.checkpoints import load_sam, register_sam_format, save_sam
from flmm_core.weights import sources
from flmm_tabletop.sam_tiny import save_tiny_sam

SHAPE = LmmShape(layers=3, heads=4, hidden_size=32)


def published(heads):
    """The published layout: trained parameters only, so no buffers, and stray frozen parts."""
    state = {key: value for key, value in heads.trained_state().items() if "pe_layer" not in key}
    state["sam.model.image_encoder.pos_embed"] = torch.zeros(1)
    return state


def same(a, b, skip="\0"):
    return all(torch.equal(value, b[key]) for key, value in a.items() if skip not in key) and a.keys() == b.keys()


def one_line(error):
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(scope="module")
def sam_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sam")
    save_tiny_sam(tiny_sam(), SAM_CONFIG, folder, dtype=torch.float32)
    return folder


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_own_sam_comes_back(tmp_path, dtype):
    save_tiny_sam(tiny_sam(), SAM_CONFIG, tmp_path, dtype=dtype)
    expected = {key: value.to(dtype).float() for key, value in tiny_sam().state_dict().items()}
    loaded = load_sam(tmp_path)
    assert same(expected, loaded.state_dict())
    assert not loaded.training and loaded.image_encoder.img_size == 64


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("probes", [True, False])
def test_own_heads_come_back(tmp_path, dtype, probes):
    heads = tiny_heads(selector=probes, presence=probes)
    save_heads(heads, tmp_path, origin=HeadsOrigin(lmm="a", sam="b", image_tokens=400), dtype=dtype)
    loaded = load_heads(tmp_path, shape=SHAPE, sam=tiny_sam())
    expected = {key: value.to(dtype).float() for key, value in heads.trained_state().items()}
    assert same(expected, loaded.trained_state())
    assert all(value.dtype == torch.float32 for value in loaded.state_dict().values())
    assert same(tiny_sam().image_encoder.state_dict(), loaded.sam.model.image_encoder.state_dict())
    origin = json.loads((tmp_path / "config.json").read_text())["origin"]
    assert origin == {"lmm": "a", "sam": "b", "lmm_fingerprint": "", "sam_fingerprint": "", "image_tokens": 400}
    assert not loaded.training


@pytest.mark.parametrize("nested", [False, True])
def test_published_heads(tmp_path, nested):
    heads, path = tiny_heads(selector=False, presence=False), tmp_path / "heads.pth"
    state = published(heads)
    torch.save({"state_dict": state, "meta": {"epoch": 8}} if nested else state, path)
    sam = tiny_sam()
    loaded = load_heads(path, shape=SHAPE, sam=sam)
    assert same(heads.trained_state(), loaded.trained_state(), skip="pe_layer")
    assert loaded.keyword_selector is None and loaded.presence is None
    # The buffer that the file leaves out is SAM's own.
    buffer = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
    assert torch.equal(loaded.sam.model.state_dict()[buffer], tiny_sam().state_dict()[buffer])


def test_segment_anything_sizes_are_read_from_the_weights(tmp_path):
    torch.manual_seed(0)
    sam = Sam(
        image_encoder=ImageEncoderViT(
            img_size=64, patch_size=8, embed_dim=24, depth=3, num_heads=3, out_chans=64, use_rel_pos=True, window_size=3,
            global_attn_indexes=(1,), mlp_ratio=2.0,
        ),
        prompt_encoder=PromptEncoder(64, (8, 8), (64, 64), 16),
        mask_decoder=MaskDecoder(
            transformer_dim=64, transformer=TwoWayTransformer(depth=2, embedding_dim=64, num_heads=8, mlp_dim=48),
            iou_head_hidden_dim=32,
        ),
    ).eval()  # fmt: skip
    for parameter in sam.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    torch.save(sam.state_dict(), tmp_path / "sam.pth")
    loaded = load_sam(tmp_path / "sam.pth")
    assert [block.window_size for block in loaded.image_encoder.blocks] == [3, 0, 3]
    assert loaded.image_encoder.blocks[0].attn.num_heads == 3
    pixels = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert (loaded.image_encoder(pixels) - sam.image_encoder(pixels)).abs().max() < 1e-5


def test_heads_of_another_lmm(tmp_path):
    path = tmp_path / "heads.pth"
    torch.save(published(tiny_heads(layers=32, heads=32, hidden=8, selector=False, presence=False)), path)
    with pytest.raises(LoadError) as error:
        load_heads(path, shape=SHAPE, sam=tiny_sam())
    message = one_line(error)
    assert "expected heads for the given LMM's 12 attention channels (3 layers, hidden size 32)" in message
    assert "got heads for 1024 (32 layers, hidden size 8), which belong to LLaVA-1.5-7B" in message
    save_heads(tiny_heads(hidden=16), tmp_path / "own")
    with pytest.raises(LoadError, match=r"hidden size 32\), got heads for 12 \(3 layers, hidden size 16\)"):
        load_heads(tmp_path / "own", shape=SHAPE, sam=tiny_sam())


def test_same_channels_but_other_layers_are_refused(tmp_path):
    save_heads(tiny_heads(layers=4, heads=3), tmp_path)
    with pytest.raises(LoadError, match=r"12 attention channels \(3 layers.*got heads for 12 \(4 layers"):
        load_heads(tmp_path, shape=SHAPE, sam=tiny_sam())


def test_missing_unknown_and_misshapen_entries(tmp_path):
    path, good = tmp_path / "heads.pth", published(tiny_heads(selector=False, presence=False))

    def fails(state):
        torch.save(state, path)
        with pytest.raises(LoadError) as error:
            load_heads(path, shape=SHAPE, sam=tiny_sam())
        return one_line(error)

    assert "1 entries are missing (mask_head.conv_seg.bias" in fails(
        {k: v for k, v in good.items() if "conv_seg.bias" not in k}
    )
    assert "1 entries are unknown (mask_head.extra" in fails({**good, "mask_head.extra": torch.zeros(1)})
    wrong = fails({**good, "mask_head.conv_seg.bias": torch.zeros(2)})
    assert "mask_head.conv_seg.bias: expected shape [1], got [2]" in wrong
    assert "expected F-LMM heads with mask_head.encoder" in fails({"weight": torch.zeros(2)})
    assert "expected a state dict of tensors" in fails([1, 2])
    assert "expected a state dict of tensors" in fails({})


@pytest.mark.parametrize("keep", [0, 1, 100, 5000, -1])
def test_truncated_files(tmp_path, keep, sam_folder):
    heads = tmp_path / "heads.pth"
    torch.save(published(tiny_heads(selector=False, presence=False)), heads)
    heads.write_bytes(heads.read_bytes()[:keep])
    with pytest.raises(LoadError, match="cannot be loaded, the file may be damaged") as error:
        load_heads(heads, shape=SHAPE, sam=tiny_sam())
    assert str(heads) in one_line(error)
    folder = tmp_path / "own"
    save_tiny_sam(tiny_sam(), SAM_CONFIG, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(LoadError, match="cannot be loaded, the file may be damaged") as error:
        load_sam(folder)
    assert "model.safetensors" in one_line(error)
    with pytest.raises(LoadError, match=r"SAM .*cannot be loaded"):
        load_sam(heads)


def test_pickles_that_run_code_are_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (print, ("run",))

    torch.save({"mask_head": Evil()}, tmp_path / "heads.pth")
    with pytest.raises(LoadError, match="cannot be loaded"):
        load_heads(tmp_path / "heads.pth", shape=SHAPE, sam=tiny_sam())


def test_missing_paths(tmp_path):
    gone = tmp_path / "gone"
    for load in (load_sam, lambda p: load_heads(p, shape=SHAPE, sam=tiny_sam())):
        with pytest.raises(LoadError, match="expected an existing file or folder, got nothing there"):
            load(gone)
    for load in (lmm_shape, lambda p: load_lmm(p, device=torch.device("cpu"), dtype=torch.float32)):
        with pytest.raises(LoadError, match="expected an existing folder or a Hugging Face name"):
            load(gone)
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(LoadError, match=r"expected a config.json in the folder, got none"):
            load(tmp_path / "empty")
    with pytest.raises(LoadError, match=r"config\.json: expected an existing file"):
        load_sam(tmp_path / "empty")


def test_configs_of_another_kind(tmp_path, sam_folder):
    with pytest.raises(LoadError, match="expected format flmm-heads version 1, got flmm-tiny-sam version 1"):
        load_heads(sam_folder, shape=SHAPE, sam=tiny_sam())
    save_tiny_sam(tiny_sam(), SAM_CONFIG, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "img_sise": 3}))
    with pytest.raises(LoadError, match="img_sise"):
        load_sam(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**config, "version": 99}))
    with pytest.raises(LoadError, match="expected format flmm-tiny-sam version 1, got flmm-tiny-sam version 99"):
        load_sam(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(LoadError, match="cannot be loaded"):
        load_sam(tmp_path)


def test_models_have_names(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PACKAGES", {})
    parts = save_model(tmp_path / "model")
    loads = {
        "lmm": lmm_shape,
        "heads": lambda source: load_heads(source, shape=SHAPE, sam=tiny_sam()).state_dict(),
        "sam": lambda source: load_sam(source).state_dict(),
    }
    for part, load in loads.items():
        other = r"Hugging Face name \(owner/name\)" if part == "lmm" else r"file, a Hugging Face name \(owner/name\)"
        expected = rf"{part}: expected a folder, a {other} or a registered model \(known: none\), got 'mine'"
        with pytest.raises(LoadError, match=expected) as error:
            load("mine")
        one_line(error)
        with pytest.raises(LoadError, match="got ''"):
            load("")
    (tmp_path / "my_model.py").write_text(
        "from pathlib import Path\nMODEL = Path(__file__).parent / 'model'\ndef register_formats(): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sources, "PACKAGES", {"mine": "my_model"})
    assert loads["lmm"]("mine") == loads["lmm"](parts["lmm"])
    assert all(same(loads[part](parts[part]), loads[part]("mine")) for part in ("heads", "sam"))
    with pytest.raises(LoadError, match="known: mine"):
        load_sam("yours")


def test_sam_formats_are_registered_from_outside(tmp_path, monkeypatch):
    monkeypatch.setattr(sam_checkpoints, "_SAM_FORMATS", {})
    save_sam(tiny_sam(), tmp_path, kind="plain", fields={"seed": 5})
    with pytest.raises(LoadError, match=r"expected format \(none is registered\) version 1, got plain version 1"):
        load_sam(tmp_path)
    register_sam_format("plain", tiny_sam)
    assert same(tiny_sam().half().float().state_dict(), load_sam(tmp_path).state_dict())
    register_sam_format("other", tiny_sam)
    save_sam(tiny_sam(), tmp_path, kind="unknown", fields={})
    with pytest.raises(LoadError, match="expected format other or plain version 1, got unknown version 1") as error:
        load_sam(tmp_path)
    one_line(error)


def test_loading_an_lmm_is_quiet(tmp_path, capfd):
    folder = save_llava(tmp_path / "lmm")
    # An entry that the model does not use makes transformers warn.
    state = load_file(folder / "model.safetensors")
    save_file({**state, "model.unused": torch.zeros(1)}, folder / "model.safetensors", metadata={"format": "pt"})
    before = (transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity())
    capfd.readouterr()
    load_lmm(folder, device=torch.device("cpu"), dtype=torch.float32)
    assert capfd.readouterr() == ("", "")
    assert (transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()) == before


def test_broken_lmms(tmp_path):
    device = torch.device("cpu")
    folder = save_llava(tmp_path / "lmm")
    assert lmm_shape(folder) == SHAPE
    load_lmm(folder, device=device, dtype=torch.float32)
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(LoadError, match=r"LMM .*cannot be loaded") as error:
        load_lmm(folder, device=device, dtype=torch.float32)
    one_line(error)
    # A checkpoint that lacks weights must not be filled up with random ones.
    weights.write_bytes(whole)
    state = load_file(weights)
    save_file({k: v for k, v in state.items() if "layers.1.mlp" not in k}, weights, metadata={"format": "pt"})
    with pytest.raises(LoadError, match=r"LMM .*expected every weight of the model, but 7 are missing") as error:
        load_lmm(folder, device=device, dtype=torch.float32)
    one_line(error)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    with pytest.raises(LoadError, match=r"expected an LMM that sees images, such as \w+, got 'gpt2', a model of text alone"):
        lmm_shape(folder)


def test_a_model_whose_package_is_not_installed_is_not_known(monkeypatch, tmp_path):
    monkeypatch.setattr(sources, "PACKAGES", {"some-model": "no_such_package"})
    assert sources.located("lmm", tmp_path) == str(tmp_path)
    with pytest.raises(LoadError, match=r"or a registered model \(known: none\), got 'some-model'"):
        sources.located("lmm", "some-model")
