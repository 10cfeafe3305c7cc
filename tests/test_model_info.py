"""`flmm info`: what it says is what the loaded model has, and no model is built for it."""

import json
import time
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from tiny_models import save_llava, save_model, tiny_heads, tiny_sam

from flmm_cli import main as cli
from flmm_core.errors import LoadError
from flmm_core.loading.checkpoints import HeadsOrigin, lmm_shape, load_heads, load_lmm, save_heads
from flmm_core.loading.image_sizes import FULL_HD, VGA, LargeImages, large_images
from flmm_core.loading.model_info import model_info
from flmm_core.weights.files import stored_tensors
from flmm_core.weights.fingerprints import lmm_fingerprint, sam_fingerprint


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    save_model(folder)
    save_heads(tiny_heads(), folder / "heads", origin=HeadsOrigin.of(lmm=folder / "lmm", sam=folder / "sam"))
    return folder


@pytest.fixture
def no_models(monkeypatch):
    """Building any network fails."""

    def built(self, *args, **kwargs):
        raise AssertionError(f"{type(self).__name__} was built")

    monkeypatch.setattr(torch.nn.Module, "__init__", built)


def info(source):
    (part,) = model_info(source)
    return part


def test_an_lmm(root, no_models):
    part = info(root / "lmm")
    numbers = sum(tensor.numbers for tensor in stored_tensors(root / "lmm" / "model.safetensors").values())
    assert part.kind == "LMM" and numbers > 20_000
    assert {name: part.facts[name] for name in ("family", "layers", "heads", "channels", "hidden size")} == {
        "family": "llava", "layers": "3", "heads": "4 a layer", "channels": "12 (3 layers x 4 heads)", "hidden size": "32",
    }  # fmt: skip
    assert json.loads(part.facts["prompt"]) == "USER: <image>\n{text} ASSISTANT:"
    assert part.facts["640x480 image"] == "maps of 4 x 4 cells, 16 tokens (GridLayout)"
    assert part.facts["weights"].startswith(f"{numbers / 1000:.3g} k numbers") and "float32" in part.facts["weights"]
    assert part.facts["memory"] == (
        f"{4 * numbers / 1000:.3g} kB in float32, {2 * numbers / 1000:.3g} kB in bfloat16 (weights alone)"
    )
    assert part.facts["fingerprint"] == lmm_fingerprint(root / "lmm")


def test_what_an_image_costs(root, no_models, tmp_path, capsys):
    """Of one grid, and of a grid that follows the image until a limit."""
    assert cli.main(["info", str(root / "lmm"), "--image", "100x80"]) == 0
    printed = capsys.readouterr().out
    assert "100x80 image  maps of 4 x 4 cells, 16 tokens (GridLayout)" in printed
    keys, queries, maps = 2 * 3 * 4 * 8 * 2 * 16, 3 * 4 * 8 * 2 * 64, 3 * 4 * 16 * 4
    memory = f"keys and values {keys / 1e3:.3g} kB, queries of an answer {queries / 1e3:.3g} kB, maps of a phrase {maps} B"
    assert memory in printed and "no limit is needed: 1920x1080 takes 16 tokens, 640x480 16" in printed
    assert cli.main(["info", str(root / "lmm"), "--image-tokens", "15"]) == 2
    assert "image_tokens: expected at least 16, " in capsys.readouterr().err
    for wrong in ("1920", "0x5", "1920x1080x3"):
        assert cli.main(["info", str(root / "lmm"), "--image", wrong]) == 2
        assert "--image: expected width and height in pixels, for instance 1920x1080, got" in capsys.readouterr().err


def test_the_limit_that_large_images_want():
    def make(most, taken={VGA: 391, FULL_HD: 2691}, limits=True):  # noqa: B006
        layouts = lambda images: [SimpleNamespace(ids=range(tokens(images[0].size)))]  # noqa: E731
        tokens = lambda size: min(taken[size], most) if most and limits else taken[size]  # noqa: E731
        return SimpleNamespace(prepare=lambda images: SimpleNamespace(layouts=layouts(images)))

    assert large_images(make) == LargeImages(391, 2691, 586, 586)
    assert str(large_images(make)) == "1920x1080 takes 2691 tokens, 640x480 391; 586 keeps 1920x1080 at 586"
    assert large_images(partial(make, taken={VGA: 391, FULL_HD: 586})).most is None
    assert str(large_images(partial(make, limits=False))).startswith("this family has no limit: ")


def test_numbers_are_those_of_the_loaded_model(root):
    model = load_lmm(root / "lmm", device=torch.device("cpu"), dtype=torch.float32).model
    stored = stored_tensors(root / "lmm" / "model.safetensors")
    assert sum(tensor.numbers for tensor in stored.values()) == sum(p.numel() for p in model.parameters())


def test_an_lmm_without_weights_is_known_all_the_same(tmp_path, no_models, root):
    for file in (root / "lmm").iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    facts = info(tmp_path).facts
    assert "640x480 image" in facts and "fingerprint" not in facts
    assert facts["weights"].startswith("not known (") and "expected weights" in facts["weights"]
    (tmp_path / "tokenizer.json").write_text("{")
    assert info(tmp_path).facts["prompt and grid"].startswith("not known (")
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(LoadError, match="expected an LMM that sees images"):
        model_info(tmp_path)


def test_own_heads_say_what_they_belong_to(root, no_models):
    part = info(root / "heads")
    assert part.kind == "heads"
    assert part.facts["channels"] == "12" and part.facts["layers"] == "3" and part.facts["hidden size"] == "32"
    assert part.facts["U-Net"].startswith("4 channels") and part.facts["keyword selector"] == "yes"
    assert part.facts["LMM"] == f"lmm, fingerprint {lmm_fingerprint(root / 'lmm')}"
    assert part.facts["SAM"] == f"sam, fingerprint {sam_fingerprint(root / 'sam')}"
    assert "float16" in part.facts["weights"] and part.facts["memory"].endswith("in float32 (weights alone)")


def published(path, **sizes):
    state = tiny_heads(selector=False, presence=False, **sizes).trained_state()
    torch.save({key: value for key, value in state.items() if "pe_layer" not in key}, path)
    return path


def test_published_heads_are_told_by_their_channels(tmp_path):
    facts = info(published(tmp_path / "a.pth", layers=24, heads=16, hidden=8)).facts
    assert facts["channels"] == "384" and facts["LMM"] == "published heads with this number of channels: DeepSeek-VL-1.3B"
    assert facts["format"] == "published .pth" and facts["presence score"] == "no" and facts["SAM"] == "not stated"
    assert "no published heads have this number of channels" in info(published(tmp_path / "b.pth")).facts["LMM"]
    assert load_heads(tmp_path / "b.pth", shape=lmm_shape(save_llava(tmp_path / "lmm")), sam=tiny_sam())


def test_sams(root, tmp_path, no_models):
    own = info(root / "sam")
    assert own.kind == "SAM" and own.facts["format"] == "flmm-tiny-sam" and own.facts["img_size"] == "64"
    state = {
        "image_encoder.pos_embed": torch.zeros(1, 8, 8, 768),
        "image_encoder.patch_embed.proj.weight": torch.zeros(768, 3, 16, 16),
        **{f"image_encoder.blocks.{i}.norm1.bias": torch.zeros(768) for i in range(12)},
    }
    torch.save(state, tmp_path / "vit.pth")
    other = info(tmp_path / "vit.pth")
    assert other.kind == "SAM" and other.facts["format"] == "segment-anything .pth"
    assert other.facts["image encoder"] == "ViT-B, 12 layers, hidden size 768"
    assert other.facts["frame"] == "128 x 128 pixels, 8 x 8 cells"
    assert other.facts["fingerprint"] == sam_fingerprint(tmp_path / "vit.pth")


def test_packed_files_are_read(tmp_path):
    """Some programs pack the archives that PyTorch writes; they cannot be mapped into memory."""
    import zipfile

    plain, packed = published(tmp_path / "plain.pth"), tmp_path / "packed.pth"
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    assert sam_fingerprint(packed) == sam_fingerprint(plain)
    assert info(packed).facts["channels"] == "12"


def test_what_is_neither(tmp_path, capsys):
    torch.save({"weight": torch.zeros(2)}, tmp_path / "x.pth")
    assert cli.main(["info", str(tmp_path / "x.pth")]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "expected heads or a SAM, got a file with other entries (weight" in line
    assert cli.main(["info", str(tmp_path / "none")]) == 2
    assert "expected an existing folder or a Hugging Face name" in capsys.readouterr().err


def test_the_command_prints_all_parts_of_the_shipped_model_at_once(capsys):
    start = time.monotonic()
    assert cli.main(["info", "flmm-tabletop"]) == 0
    assert time.monotonic() - start < 20  # imports included
    text = capsys.readouterr().out
    blocks = text.split("\n\n")
    assert [block.split()[0] for block in blocks] == ["LMM", "heads", "SAM"]
    lmm, heads, sam = ({line[2:].split("  ")[0]: line.split("  ")[-1].strip() for line in b.splitlines()[1:]} for b in blocks)
    assert heads["LMM"].endswith(lmm["fingerprint"]) and heads["SAM"].endswith(sam["fingerprint"])
