"""What `auto` stands for, files of chosen attention heads, and their calibration."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from flmm_cli.main import main
from flmm_core.config import DEFAULT_MODEL, GroundingConfig
from flmm_core.errors import LoadError
from flmm_core.heads.attention_presence import AttentionPresence
from flmm_core.images.files import write_image
from flmm_core.loading.checkpoints import fingerprints
from flmm_core.loading.defaults import model_record, resolved
from flmm_core.loading.head_choices import (
    ChosenHead,
    HeadChoice,
    PresenceFigures,
    check_fits,
    choice_path,
    read_choice,
    write_choice,
)
from flmm_core.loading.parts import load_heads_and_sam
from flmm_core.types import CoarseMasks, ImageGeometry
from flmm_core.weights.sources import located


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def choice(tiny_model):
    """Of the tiny model's LMM."""
    return HeadChoice(
        lmm="tiny",
        lmm_fingerprint=fingerprints(lmm=tiny_model["lmm"])["lmm"],
        lmm_channels=12,
        criterion="contrast",
        images=4,
        phrases=9,
        heads=(ChosenHead(5, 1, 1, 9, 0.3, 0.2), ChosenHead(8, 2, 0, 7, 0.25, 0.1)),
        presence=PresenceFigures(AttentionPresence(((4, 8),), 1.5, 2.0), 0.91, 9, 8),
    )


def taken(**config):
    found = resolved(GroundingConfig(**config))
    return found.heads, found.sam


def test_the_shipped_model_takes_its_trained_parts_under_any_name(tmp_path):
    copy = shutil.copytree(located("lmm", DEFAULT_MODEL), tmp_path / "copy")
    for lmm in (DEFAULT_MODEL, located("lmm", DEFAULT_MODEL), str(copy)):
        assert taken(lmm=lmm) == (DEFAULT_MODEL, DEFAULT_MODEL)
    assert taken(heads="attention") == ("attention", DEFAULT_MODEL)


def test_another_lmm_takes_attention_heads_and_a_stock_sam(tiny_model):
    assert taken(lmm=tiny_model["lmm"]) == ("attention", "facebook/sam-vit-base")
    assert taken(lmm=tiny_model["lmm"], heads="published.pth") == ("published.pth", "facebook/sam-vit-large")
    assert taken(lmm=tiny_model["lmm"], sam="mine") == ("attention", "mine")


def test_trained_heads_are_not_taken_with_another_sam(tiny_model):
    assert taken(sam=tiny_model["sam"]) == ("attention", tiny_model["sam"])


def test_a_kept_choice_is_taken_for_its_lmm_alone(tiny_model, choice):
    path = choice_path(choice.lmm_fingerprint)
    write_choice(path, choice)
    assert taken(lmm=tiny_model["lmm"]) == (str(path), "facebook/sam-vit-base")
    assert taken(heads="attention") == ("attention", DEFAULT_MODEL)
    heads = load_heads_and_sam(resolved(GroundingConfig(lmm=tiny_model["lmm"], sam=tiny_model["sam"])))
    assert heads.channels == (5, 8) and heads.presence == choice.presence.score
    assert heads.description == "not trained: 2 attention heads, calibrated"
    record = model_record(GroundingConfig(lmm=tiny_model["lmm"], sam=tiny_model["sam"]))
    assert record["heads"]["source"] == str(path) and len(record["heads"]["fingerprint"]) == 64


def test_heads_without_a_presence_score_take_the_calibrated_one(tmp_path, tiny_model, choice):
    from tiny_models import tiny_heads

    from flmm_core.loading.checkpoints import save_heads

    save_heads(tiny_heads(presence=False), tmp_path / "heads")
    config = resolved(GroundingConfig(**{**tiny_model, "heads": str(tmp_path / "heads")}))
    assert load_heads_and_sam(config).attention_presence is None
    write_choice(choice_path(choice.lmm_fingerprint), choice)
    heads = load_heads_and_sam(config)
    assert heads.description == "trained; presence calibrated"
    maps = torch.rand(2, 12, 4, 4) / 16
    maps[1] *= 0.01
    coarse = CoarseMasks(torch.ones(2, 4, 4), ImageGeometry(4, 4, 4, 4, 0, 0, 4, 4, 4, 4))
    first, second = heads.presence_probabilities([torch.zeros(3, 1, 32)] * 2, maps, coarse)
    assert first > 0.5 and second < 0.05


def test_attention_heads_have_no_fingerprint_of_weights():
    assert model_record(GroundingConfig(heads="attention"), ("heads",)) == {
        "heads": {"source": "attention", "fingerprint": None}
    }


@pytest.mark.parametrize("part", ["heads", "sam"])
def test_an_empty_source_is_refused(part):
    with pytest.raises(LoadError, match=f"^{part}: expected a folder, a file.* got ''$"):
        load_heads_and_sam(resolved(GroundingConfig(**{part: ""})))


def test_a_choice_comes_back(tmp_path, choice):
    for one in (choice, replace(choice, presence=None)):
        write_choice(tmp_path / "heads.json", one)
        assert read_choice(tmp_path / "heads.json") == one


def test_a_choice_for_another_lmm_is_refused(choice):
    with pytest.raises(LoadError) as error:
        check_fits(choice, "heads.json", lmm=DEFAULT_MODEL, channels=36)
    assert str(error.value).startswith("heads heads.json: expected the LMM that they were chosen for, tiny with 12 attention")
    with pytest.raises(LoadError, match="got flmm-tabletop with 12 and fingerprint "):
        check_fits(choice, "heads.json", lmm=DEFAULT_MODEL, channels=12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.update(format="flmm-heads"), "expected format flmm-attention-heads version 1, got flmm-heads version 1"),
        (lambda f: f.pop("images"), "expected lmm, lmm_fingerprint, lmm_channels, criterion, images,"),
        (lambda f: f.update(images=2.5), "images: expected int, got 2.5"),
        (lambda f: f.update(more=1), "the file: expected lmm,"),
        (lambda f: f.update(criterion="best"), "expected a criterion of entropy, contrast, got 'best'"),
        (lambda f: f.update(heads=[]), r"expected different channels of 0 to 11, at least one, got \[\]"),
        (lambda f: f["heads"][0].update(channel=12), r"expected different channels of 0 to 11, at least one, got \[12, 8\]"),
        (lambda f: f["heads"][0].update(votes="9"), "heads: votes: expected int, got '9'"),
        (lambda f: f.update(heads=3), "heads: expected a list, got 3"),
        (lambda f: f["presence"].pop("slope"), "expected presence with bands, slope,"),
        (lambda f: f["presence"].update(slope=-1.0), "expected a band and a slope above 0"),
        (lambda f: f["presence"].update(bands=[[4, 40]]), r"presence: expected bands of the 12 channels, got \[4, 40\]"),
    ],
)
def test_a_damaged_choice_is_refused_in_one_line(tmp_path, choice, change, message):
    fields = choice.record()
    fields = json.loads(json.dumps(fields))
    change(fields)
    (tmp_path / "heads.json").write_text(json.dumps(fields))
    with pytest.raises(LoadError, match=message) as error:
        read_choice(tmp_path / "heads.json")
    assert "\n" not in str(error.value) and "heads.json" in str(error.value)


@pytest.fixture
def photos(tmp_path, samples):
    folder = tmp_path / "photos"
    for number, sample in enumerate(samples[:4]):
        write_image(folder / f"{number}.png", sample.image(), "test")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def test_the_shipped_model_is_calibrated_and_points(tmp_path, photos, capsys):
    out = tmp_path / "heads.json"
    assert main(["calibrate", DEFAULT_MODEL, "--images", str(photos), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "skipped:" in printed and "broken.png" in printed and f"file: {out}" in printed
    choice = read_choice(out)
    assert main(["calibrate", DEFAULT_MODEL, "--images", str(photos), "--out", str(out)]) == 0  # its own file is replaced
    assert read_choice(out) == choice
    assert choice.images == 4 and len(choice.heads) == 3 and choice.lmm_channels == 36
    assert all(head.channel == 6 * head.layer + head.head for head in choice.heads)
    assert main(["info", str(out)]) == 0
    assert "attention heads, not trained" in capsys.readouterr().out
    overlay = tmp_path / "masks.json"
    arguments = ["ground", str(photos / "0.png"), "the mug", "--refer", "--heads", str(out), "--json", str(overlay)]
    assert main(arguments) == 0
    assert json.loads(overlay.read_text())["model"]["heads"] == str(out)


def test_without_out_the_choice_is_kept_for_the_lmm(photos):
    assert main(["calibrate", DEFAULT_MODEL, "--images", str(photos), "--limit", "2"]) == 0
    assert taken(heads="attention")[0] == str(choice_path(fingerprints(lmm=DEFAULT_MODEL)["lmm"]))


def test_calibration_is_refused_in_one_line(tmp_path, photos, capsys):
    for arguments, message in (
        (["--images", str(tmp_path / "none")], "--images: expected a folder"),
        (["--images", str(photos), "--limit", "1"], "expected at least two image files"),
        (["--images", str(photos), "--out", "heads.txt"], "--out: expected a .json file"),
        (["--images", str(photos), "--heads", "0"], "--heads: expected at least 1"),
    ):
        assert main(["calibrate", DEFAULT_MODEL, *arguments]) == 2
        assert message in capsys.readouterr().err
    assert not np.any([path.suffix == ".json" for path in tmp_path.rglob("*")])
