"""The command line: options and defaults, one line for every mistake, and the commands that need no ROS on tiny models."""

import dataclasses
import importlib
import json

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from tiny_dataset import HEIGHT, WIDTH, write_tiny_dataset
from tiny_models import save_model

from flmm_cli import main as cli
from flmm_cli.model_options import add_model_options, grounding_config
from flmm_cli.table import format_table
from flmm_core.config import GroundingConfig, tunables
from flmm_core.plain_text import printable

NAMES = [name.replace("_", "-") for name in cli.COMMANDS]
STAGES = ("tower", "lmm", "sam", "heads")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    parts = save_model(tmp_path_factory.mktemp("model"))
    options = [word for part, folder in parts.items() for word in (f"--{part}", folder)]
    return [*options, "--device", "cpu", "--max-new-tokens", "4"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_tiny_dataset(tmp_path_factory.mktemp("data") / "set", count=3)


def run(*words):
    return cli.main([str(word) for word in words])


def fails(capsys, *words, status=2):
    """The one line that a mistake gives."""
    assert run(*words) == status
    captured = capsys.readouterr()
    (line,) = captured.err.strip().splitlines()
    assert line.startswith(f"flmm {words[0]}: ")
    return line


def help_of(capsys, *words):
    with pytest.raises(SystemExit) as exit_:
        run(*words, "--help")
    assert exit_.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_every_command_is_listed_and_explains_itself(capsys):
    listed = help_of(capsys)
    for name in NAMES:
        assert name in listed
        assert f"usage: flmm {name}" in help_of(capsys, name)
    assert {"ground", "scenes", "train-tower", "train-lmm", "train-sam", "train-heads", "eval", "ask", "demo"} <= set(NAMES)


@pytest.mark.parametrize("command", [("ground",), ("eval", "tabletop"), ("attention",)])
def test_every_tunable_is_an_option(capsys, command):
    shown = help_of(capsys, *command)
    for tunable in tunables():
        assert "--" + tunable.name.replace("_", "-") in shown
        assert f"default: {tunable.default if tunable.default != '' else 'empty'}" in shown
    assert "0.01 to 0.99" in shown and "auto, float32, bfloat16, float16" in shown


def test_options_become_the_configuration():
    import argparse

    parser = argparse.ArgumentParser()
    add_model_options(parser)
    assert grounding_config(parser.parse_args([])) == GroundingConfig()
    args = parser.parse_args(["--no-reuse-prefix", "--mask-threshold", "0.3", "--lmm", "x/y", "--cpu-threads", "2"])
    assert grounding_config(args) == GroundingConfig(reuse_prefix=False, mask_threshold=0.3, lmm="x/y", cpu_threads=2)


@pytest.mark.parametrize("name", STAGES)
def test_defaults_of_a_stage_are_those_of_its_settings(capsys, name):
    stage = importlib.import_module(f"flmm_cli.train_{name}").STAGE
    package = "flmm_core" if name == "heads" else "flmm_tabletop"
    settings = getattr(importlib.import_module(f"{package}.training.{name}"), f"{name.capitalize()}Settings")
    fields = {field.name: field for field in dataclasses.fields(settings)}
    for option in stage.options:
        default = fields[option.name].default
        assert default in (dataclasses.MISSING, option.default), option.name
    required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    assert required <= {option.name for option in stage.options} | {"data", "val"}
    shown = help_of(capsys, f"train-{name}")
    assert f"default: {stage.steps}" in shown and f"default: {stage.learning_rate}" in shown and f"runs/{name}" in shown


def test_mistakes_give_one_line(capsys, tmp_path, model, data):
    picture = data / "images" / "000000.png"
    assert "expected a picture at nowhere.png, got no such file" in fails(capsys, "ground", "nowhere.png", "hello")
    assert "expected one question in quotes, got 2 arguments" in fails(capsys, "ground", picture, "where", "is")
    assert "mask_threshold: expected 0.01 to 0.99" in fails(capsys, "ground", picture, "hi", "--mask-threshold", 1)
    missing = fails(capsys, "ground", picture, "hi", *model, "--lmm", tmp_path / "no")
    assert "expected an existing folder or a Hugging Face name" in missing
    assert "got a folder without annotations.json" in fails(capsys, "eval", "tabletop", "--data", tmp_path)
    assert "--per-kind: expected at least 1, got 0" in fails(capsys, "eval", "tabletop", "--per-kind", 0)
    assert "--rank: expected at least 1, got 0" in fails(capsys, "attention", "--rank", 0)
    assert "expected one question in quotes" in fails(capsys, "attention", picture)
    assert "--count: expected at least 1, got 0" in fails(capsys, "scenes", "--out", tmp_path / "s", "--count", 0)
    assert "--seed: expected at least 0, got -1" in fails(capsys, "scenes", "--out", tmp_path / "s", "--seed", -1)
    assert "--tower: expected the result of an earlier stage" in fails(capsys, "train-lmm", "--tower", tmp_path / "none")
    assert "--batch: expected a positive number, got 0" in fails(capsys, "train-tower", "--batch", 0)
    assert "steps: expected at least 1, got 0" in fails(capsys, "train-tower", "--steps", 0)
    with pytest.raises(SystemExit) as exit_:
        run("no-such-command")
    assert exit_.value.code == 2 and "invalid choice" in capsys.readouterr().err


def test_traceback_on_request():
    with pytest.raises(ValueError, match="no such file"):
        run("--traceback", "ground", "nowhere.png", "hello")


def test_ground_writes_what_it_found(capsys, tmp_path, model, data):
    picture, out = data / "images" / "000001.png", tmp_path / "new"
    outputs = ["--out", out / "overlay.png", "--json", out / "answer.json", "--masks", out / "masks"]
    assert run("ground", picture, "red mug", "the lemon", "--refer", *outputs, *model) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("red mug. the lemon.\n") and str(out / "overlay.png") in printed
    record = json.loads((out / "answer.json").read_text())
    assert (record["answer"], record["mode"], record["height"], record["width"]) == (
        "red mug. the lemon.",
        "refer",
        HEIGHT,
        WIDTH,
    )
    assert [phrase["text"] for phrase in record["phrases"]] == ["red mug", "the lemon"]
    files = sorted((out / "masks").iterdir())
    assert [file.name for file in files] == ["01_red_mug.png", "02_the_lemon.png"]
    for phrase, file in zip(record["phrases"], files, strict=True):
        mask = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        assert mask.shape == (HEIGHT, WIDTH) and set(np.unique(mask)) <= {0, 255}
        assert (coco_mask.decode(phrase["mask"]) * 255 == mask).all() and phrase["area"] == (mask > 0).sum()
        assert record["answer"][phrase["start"] : phrase["end"]] == phrase["text"]
    assert cv2.imread(str(out / "overlay.png")).shape[1] >= WIDTH


def test_ground_chat(capsys, model, data):
    assert run("ground", data / "images" / "000000.png", "what is there?", *model) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].strip().startswith("(") and lines[-1].endswith("s)")


def test_eval_and_attention(capsys, tmp_path, model, data):
    assert run("eval", "tabletop", "--data", data, "--quick", "--limit", 2, "--out", tmp_path / "figures.json", *model) == 0
    printed = capsys.readouterr().out
    assert "right answers: all" in printed and "refer, names: cIoU, SAM" in printed and "2 pictures in" in printed
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["pictures"] == 2 and figures["per_kind"] == 1 and figures["answers"]["all"]["count"] == 10
    assert figures["model"]["lmm"].endswith("lmm") and figures["command"].startswith("flmm ")

    picture, out = data / "images" / "000002.png", tmp_path / "maps.png"
    options = ["--data", data, "--rank", 2, "--maps", 2, "--out", out, "--json", tmp_path / "heads.json"]
    assert run("attention", picture, "red mug", "lemon", "--refer", *options, *model) == 0
    assert "its peak lies on the named thing in" in capsys.readouterr().out
    assert cv2.imread(str(out)).shape[1] > 1000
    accuracy = json.loads((tmp_path / "heads.json").read_text())["pointing_accuracy"]
    assert len(accuracy) == 12 and all(0 <= value <= 1 for value in accuracy.values())


def test_scenes(capsys, tmp_path):
    from flmm_sim.offscreen import RenderingUnavailableError, open_gl

    try:
        open_gl(8, 8).free()
    except RenderingUnavailableError as error:
        pytest.skip(str(error))
    from flmm_core.data.dataset import read_dataset

    assert (
        run("scenes", "--out", tmp_path / "a", "--seed", 3, "--count", 2, "--split", "odd", "--per-kind", 1, "--workers", 1)
        == 0
    )
    assert "2 scenes" in capsys.readouterr().out
    (first, second) = read_dataset(tmp_path / "a")
    assert first.image().shape == second.image().shape and first.rles != second.rles


def test_tables():
    table = format_table(("name", "value"), [("a long name that wraps", "1.50"), ("b", "10")], width=20).splitlines()
    assert table[0].split() == ["name", "value"] and all(len(line) <= 20 for line in table)
    assert table[2].endswith(" 1.50") and table[-1].endswith("   10")
    assert printable("a\x1b[31m\nb\tc") == "a [31m b c"
