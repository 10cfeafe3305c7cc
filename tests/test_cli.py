"""The command line: options and defaults, one line for every mistake, and the commands that need no ROS on tiny models."""

import argparse
import dataclasses
import io
import json
import os
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import ExifTags, Image
from pycocotools import mask as coco_mask
from tiny_dataset import HEIGHT, WIDTH, write_tiny_dataset

from flmm_cli import main as cli
from flmm_cli import train
from flmm_cli.shared.options import add_model_options, grounding_config
from flmm_cli.shared.table import format_table
from flmm_cli.train import STAGES
from flmm_core.common.plain_text import one_line, printable
from flmm_core.config import GroundingConfig, tunables
from flmm_core.weights.fingerprints import lmm_fingerprint, sam_fingerprint
from flmm_demo.files import remove_earlier

NAMES = list(cli.declare(argparse.ArgumentParser().add_subparsers()))


@pytest.fixture(scope="module")
def model(tiny_model):
    options = [word for part, folder in tiny_model.items() for word in (f"--{part}", folder)]
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
    assert {"ground", "scenes", "train", "data", "convert-data", "eval", "ask", "demo"} <= set(NAMES)


@pytest.mark.parametrize("command", [("ground",), ("eval", "tabletop"), ("attention",)])
def test_every_tunable_is_an_option(capsys, command):
    shown = help_of(capsys, *command)
    for tunable in tunables():
        assert "--" + tunable.name.replace("_", "-") in shown
        assert f"default: {tunable.default if tunable.default != '' else 'empty'}" in shown
    assert "0.01 to 0.99" in shown and "auto, float32, bfloat16, float16" in shown


def test_options_become_the_configuration():
    parser = argparse.ArgumentParser()
    add_model_options(parser)
    assert grounding_config(parser.parse_args([])) == GroundingConfig()
    args = parser.parse_args(["--no-reuse-prefix", "--mask-threshold", "0.3", "--lmm", "x/y", "--cpu-threads", "2"])
    assert grounding_config(args) == GroundingConfig(reuse_prefix=False, mask_threshold=0.3, lmm="x/y", cpu_threads=2)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_options_of_a_stage_are_the_fields_of_its_settings(capsys, monkeypatch, tmp_path, stage):
    command, given = ("train", stage.name), {}
    monkeypatch.setattr(train, "_trainer", lambda name: lambda *arguments: given.update({name: arguments}))
    earlier = [entry.name for entry in dataclasses.fields(stage.settings) if entry.metadata.get("earlier")]
    paths = dict.fromkeys(earlier, tmp_path)
    here = [word for name in earlier for word in (f"--{name}", tmp_path)]
    assert run(*command, *here) == 0
    out, settings, loop, _ = given[stage.name]
    assert (out, settings, loop) == (Path("runs") / stage.name, stage.settings(**paths), stage.settings.LOOP)

    steps = {} if stage.name == "heads" else {"steps": 7}  # those of the heads follow from their epochs
    changed = ["--data", "a", "--batch", 3, "--seed", 5, "--learning-rate", 0.5, "--beta2", 0.9, "--no-bf16"]
    changed += [word for name, value in steps.items() for word in (f"--{name}", value)]
    assert run(*command, *here, *changed, "--out", "b", "--device", "cpu") == 0
    out, settings, loop, device = given[stage.name]
    assert (out, device.type) == (Path("b"), "cpu")
    data = ("a",) if stage.name == "heads" else Path("a")
    assert settings == stage.settings(data=data, batch=3, seed=5, **paths)
    assert loop == dataclasses.replace(stage.settings.LOOP, learning_rate=0.5, beta2=0.9, bf16=False, **steps)

    shown = help_of(capsys, *command)
    for number in (*([stage.settings.LOOP.steps] if steps else []), stage.settings.LOOP.learning_rate, stage.settings().batch):
        assert f"default: {number}" in shown


def test_mistakes_give_one_line(capsys, tmp_path, model, data):
    image = data / "images" / "000000.png"
    assert "expected an image at nowhere.png, got no such file" in fails(capsys, "ground", "nowhere.png", "hello")
    assert "expected one question in quotes, got 2 arguments" in fails(capsys, "ground", image, "where", "is")
    assert "mask_threshold: expected 0.01 to 0.99" in fails(capsys, "ground", image, "hi", "--mask-threshold", 1)
    missing = fails(capsys, "ground", image, "hi", *model, "--lmm", tmp_path / "no")
    assert "expected an existing folder or a Hugging Face name" in missing
    assert "got a folder without questions.json" in fails(capsys, "eval", "tabletop", "--data", tmp_path)
    assert "--per-kind: expected at least 1, got 0" in fails(capsys, "eval", "tabletop", "--per-kind", 0)
    assert "--rank: expected at least 1, got 0" in fails(capsys, "attention", "--rank", 0)
    assert "expected one question in quotes" in fails(capsys, "attention", image)
    assert "--count: expected at least 1, got 0" in fails(capsys, "scenes", "--out", tmp_path / "s", "--count", 0)
    assert "--seed: expected at least 0, got -1" in fails(capsys, "scenes", "--out", tmp_path / "s", "--seed", -1)
    assert "--tower: expected the result of an earlier stage" in fails(capsys, "train", "lmm", "--tower", tmp_path / "none")
    assert "batch: expected at least 1, got 0" in fails(capsys, "train", "tower", "--batch", 0)
    assert "seed: expected at least 0, got -1" in fails(capsys, "train", "sam", "--seed", -1)
    assert "steps: expected at least 1, got 0" in fails(capsys, "train", "tower", "--steps", 0)
    with pytest.raises(SystemExit) as exit_:
        run("no-such-command")
    assert exit_.value.code == 2 and "invalid choice" in capsys.readouterr().err


def test_traceback_on_request():
    with pytest.raises(ValueError, match="no such file"):
        run("--traceback", "ground", "nowhere.png", "hello")


def test_ground_writes_what_it_found(capsys, tmp_path, model, data):
    image, out = data / "images" / "000001.png", tmp_path / "new"
    outputs = ["--out", out / "overlay.png", "--json", out / "answer.json", "--masks", out / "masks"]
    assert run("ground", image, "red mug", "the lemon", "--refer", *outputs, *model) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("red mug. the lemon\n") and str(out / "overlay.png") in printed
    record = json.loads((out / "answer.json").read_text())
    assert (record["answer"], record["mode"]) == ("red mug. the lemon", "refer")
    assert (record["height"], record["width"]) == (HEIGHT, WIDTH)
    assert [phrase["text"] for phrase in record["phrases"]] == ["red mug", "the lemon"]
    files = sorted((out / "masks").iterdir())
    assert [file.name for file in files] == ["01_red_mug.png", "02_the_lemon.png"]
    for phrase, file in zip(record["phrases"], files, strict=True):
        mask = cv2.imread(str(file), cv2.IMREAD_UNCHANGED)
        assert mask.shape == (HEIGHT, WIDTH) and set(np.unique(mask)) <= {0, 255}
        assert (coco_mask.decode(phrase["mask"]) * 255 == mask).all() and phrase["area"] == (mask > 0).sum()
        assert record["answer"][phrase["start"] : phrase["end"]] == phrase["text"]
    assert cv2.imread(str(out / "overlay.png")).shape[1] >= WIDTH


def test_ground_shows_a_turned_photograph_upright(capsys, tmp_path, model, data):
    """A camera that was held upright stores its image lying, and says so in EXIF."""
    path, outputs = tmp_path / "turned.jpg", ["--json", tmp_path / "answer.json", "--masks", tmp_path / "masks"]
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    with Image.open(data / "images" / "000001.png") as image:
        image.save(path, exif=exif)
    assert run("ground", path, "red mug", "--refer", *outputs, "--presence-threshold", 0, *model) == 0
    record = json.loads((tmp_path / "answer.json").read_text())
    assert (record["height"], record["width"]) == (WIDTH, HEIGHT)
    (mask,) = (tmp_path / "masks").iterdir()
    assert cv2.imread(str(mask), cv2.IMREAD_UNCHANGED).shape == (WIDTH, HEIGHT)


def test_ground_says_what_is_not_there(capsys, tmp_path, model, data):
    command = ["ground", data / "images" / "000001.png", "red mug", "--refer", *model, "--json", tmp_path / "answer.json"]

    def grounded(threshold):
        assert run(*command, "--presence-threshold", threshold) == 0
        (phrase,) = json.loads((tmp_path / "answer.json").read_text())["phrases"]
        return capsys.readouterr().out.splitlines()[1], phrase

    line, phrase = grounded(1.0)
    assert line == f"  red mug: not there (presence {phrase['presence']:.2f})"
    assert phrase["absent"] and phrase["area"] == 0 and 0 < phrase["presence"] < 1
    line, phrase = grounded(0.0)
    assert line.endswith(f"presence {phrase['presence']:.2f}") and "not there" not in line
    assert not phrase["absent"]


def test_ground_chat(capsys, model, data):
    assert run("ground", data / "images" / "000000.png", "what is there?", *model) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].strip().startswith("(") and lines[-1].endswith("s)")


def test_chat_answers_line_by_line(capsys, monkeypatch, tmp_path, model, data):
    lines = [
        "what is there?",
        "",
        "/refer red mug, the lemon",
        "!?",
        "/refer ,",
        "/nonsense",
        "/look what is there?",
        "/objects",
        "where is [77]?",
        "what is there?",
        "/quit",
        "never read",
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    image = data / "images" / "000000.png"
    assert run("chat", image, "--out", tmp_path / "chat", *model) == 0
    printed = capsys.readouterr().out
    assert printed.count("no answer: text: expected at least one letter or digit") == 2
    assert printed.count("/quit") == 2, "at the beginning, and after what is no command"
    assert [path.name for path in sorted((tmp_path / "chat").iterdir())] == [f"00{i}.png" for i in range(1, 5)]
    assert "closer look at: " in printed or "no part found for a closer look" in printed
    assert "no answer: label: expected one of those given (" in printed
    assert "  red mug: " in printed and "  the lemon: " in printed
    assert run("ground", image, "what is there?", *model) == 0
    words = capsys.readouterr().out.splitlines()[0]
    assert printed.count(words) == 2, "as it would be answered alone"


def test_chat_ends_with_its_input(capsys, monkeypatch, tmp_path, model, data):
    monkeypatch.setattr("sys.stdin", io.StringIO("/refer red mug"))
    assert run("chat", data / "images" / "000000.png", "--out", tmp_path, *model) == 0
    assert (tmp_path / "001.png").is_file()


def test_lack_of_memory_is_one_line(capsys, data, tmp_path, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr("flmm_core.data.check.look_through", full)
    line = fails(capsys, "data", "check", data, "--out", tmp_path / "a.png", status=1)
    assert line == "flmm data: expected enough free memory, got too little (MemoryError)"


def test_eval_writes_its_table_and_what_it_was_made_with(capsys, tmp_path, model, data):
    out = tmp_path / "new" / "figures.json"
    assert run("eval", "tabletop", "--data", data, "--limit", 2, "--json", out, *model) == 0
    printed = capsys.readouterr().out
    record = json.loads(out.read_text())
    assert "2 images, 0 skipped, in" in printed and "chat, right answers: cIoU, SAM" in printed
    rows = {row.pop("figure"): row for row in record["rows"]}
    assert all(name in printed and set(row) == {"value", "low", "high", "count"} for name, row in rows.items())
    assert rows["answers: all"]["count"] == 10 and rows["refer: cIoU, SAM"]["count"] > 0
    assert (record["images"], record["per_kind"], record["data"]) == (2, 1, str(data))
    assert record["command"].startswith("flmm eval tabletop --data ")
    assert {"python", "torch", "transformers", "numpy", "flmm_ros"} == set(record["versions"])
    source = dict(zip(model[::2], model[1::2], strict=True))
    assert record["model"]["lmm"] == {"source": source["--lmm"], "fingerprint": lmm_fingerprint(source["--lmm"])}
    assert record["model"]["heads"]["fingerprint"] == sam_fingerprint(source["--heads"])
    assert not {"seconds", "finished", "workers"} & set(record), "a number of the machine"


def test_attention_draws_and_ranks_all_heads(capsys, tmp_path, model, data):
    image, out = data / "images" / "000002.png", tmp_path / "maps.png"
    options = ["--data", data, "--rank", 2, "--maps", 2, "--out", out, "--json", tmp_path / "heads.json"]
    assert run("attention", image, "red mug", "lemon", "--refer", *options, *model) == 0
    assert "its peak lies on the named object for" in capsys.readouterr().out
    assert cv2.imread(str(out)).shape[1] > 1000
    record = json.loads((tmp_path / "heads.json").read_text())
    assert len({(row["layer"], row["head"]) for row in record["heads"]}) == 12
    assert [row["pointing"] for row in record["heads"]] == sorted((row["pointing"] for row in record["heads"]), reverse=True)
    assert record["images"] == 2 and {row["count"] for row in record["heads"]} == {record["names"]}
    assert 0 < record["random"]["pointing"] < 1 and record["command"].startswith("flmm attention") and record["model"]


def test_scenes(capsys, tmp_path):
    from flmm_sim.offscreen import RenderingUnavailableError, open_gl

    try:
        open_gl(8, 8).free()
    except RenderingUnavailableError as error:
        pytest.skip(str(error))
    from flmm_core.data.tabletop import read_dataset

    assert run("scenes", "--out", tmp_path / "a", "--seed", 3, "--count", 2, "--split", "odd", "--workers", 1) == 0
    assert "2 scenes" in capsys.readouterr().out
    (first, second) = read_dataset(tmp_path / "a")
    assert first.image().shape == second.image().shape and first.rles != second.rles


def test_demo_removes_its_own_files_alone(tmp_path):
    written = (
        "01_list.png",
        "12_refer.png",
        "100_where.png",
        "contact_sheet.png",
        "lead.png",
        "answers.json",
        "camera.log",
        "grounding.log",
    )
    foreign = ("notes.txt", "1_list.png", "01_holiday.png", "01_list.png.bak", "my_answers.json", ".hidden", "node.log")
    for name in (*written, *foreign):
        (tmp_path / name).write_text(name)
    (tmp_path / "02_where.png").mkdir()
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "answers.json").write_text("{}")
    (tmp_path / "03_count.png").symlink_to(tmp_path / "sub" / "answers.json")
    remove_earlier(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*foreign, "02_where.png", "sub"}
    assert (tmp_path / "sub" / "answers.json").exists()


def test_tables():
    table = format_table(("name", "value"), [("a long name that wraps", "1.50"), ("b", "10")], width=20).splitlines()
    assert table[0].split() == ["name", "value"] and all(len(line) <= 20 for line in table)
    assert table[2].endswith(" 1.50") and table[-1].endswith("   10")
    assert printable("a\x1b[31m\nb\tc") == "a [31m b c"


# --- what is written --------------------------------------------------------------------------------------------------------

READ = {"ask": set(), "attention": {"image", "data"}, "bag": {"bag"}, "chat": {"image"}, "convert-data": {"folder"}}
READ |= {"ground": {"image"}, "tabletop": {"data"}, "verify-frozen": {"questions", "images"}}
READ |= {"calibrate": {"images"}}
READ |= {"tower": {"data", "val"}, "lmm": {"data", "val", "tower"}, "sam": {"data", "val"}}


def parsers():
    """Every parser of a command, by its last word."""
    top = argparse.ArgumentParser()
    cli.declare(top.add_subparsers())
    waiting, found = [("flmm", top)], []
    while waiting:
        name, parser = waiting.pop()
        found.append((name, parser))
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                waiting += action.choices.items()
    return found


def test_every_path_is_known_as_read_or_written():
    for name, parser in parsers():
        paths = {action.dest for action in parser._actions if action.type is Path}
        written = {output.dest for output in parser.get_default("outputs") or ()}
        assert paths - written == READ.get(name, set()), f"flmm {name}: declare what is written by add_output"


@pytest.mark.parametrize("force", [[], ["--force"]])
def test_an_input_is_never_written_over(capsys, tmp_path, data, force):
    image = shutil.copy(data / "images" / "000000.png", tmp_path / "in.png")
    (tmp_path / "link.png").symlink_to(image)
    (tmp_path / "hard.png").hardlink_to(image)
    before = Path(image).read_bytes()
    for out in ("in.png", "link.png", "hard.png", "../" + tmp_path.name + "/in.png"):
        line = fails(capsys, "ground", image, "red mug", "--refer", "--out", tmp_path / out, *force)
        assert "--out: expected another path than what is read, got" in line
    assert "--json: expected another path" in fails(capsys, "ground", image, "hi", "--json", image, *force)
    bag = shutil.copy(image, tmp_path / "a.partial")
    assert "--out: expected another path" in fails(capsys, "bag", bag, "--command", "hi", "--out", tmp_path / "a", *force)
    first = shutil.copy(image, tmp_path / "001.png")
    assert "--out: expected another path" in fails(capsys, "chat", first, "--out", tmp_path, *force)
    one = data / "images" / "000001.png"
    assert "--out: expected another path" in fails(capsys, "data", "check", data, "--out", one, *force)
    assert "--json: expected another path" in fails(
        capsys, "eval", "tabletop", "--data", data, "--json", data / "questions.json", *force
    )
    assert Path(image).read_bytes() == before and json.loads((data / "questions.json").read_text())


OVERWRITES = {
    "ground": ["ground", "IMAGE", "hi", "--out", "FILE.png"],
    "json": ["ground", "IMAGE", "hi", "--json", "FILE.json"],
    "masks": ["ground", "IMAGE", "hi", "--masks", "FOLDER/01_mug.png"],
    "ask": ["ask", "hi", "--out", "FILE.png"],
    "attention": ["attention", "--out", "FILE.png"],
    "eval": ["eval", "res", "DATA", "--markdown", "FILE.md"],
    "page": ["eval", "res", "DATA", "--html", "FILE.html"],
    "bag": ["bag", "IMAGE", "--command", "hi", "--out", "FILE.mcap"],
    "partial": ["bag", "IMAGE", "--command", "hi", "--out", "OTHER.mcap.partial"],
    "chat": ["chat", "IMAGE", "--out", "FOLDER/002.png"],
    "bench": ["bench", "--out", "FOLDER/cpu.md"],
    "demo": ["demo", "--out", "FOLDER/camera.log"],
    "soak": ["soak", "--logs", "FOLDER/camera.log"],
    "scenes": ["scenes", "--out", "FOLDER/notes.txt"],
    "train": ["train", "sam", "--out", "FOLDER/config.json"],
    "data": ["data", "check", "DATA", "--out", "FILE.png"],
    "verify": ["verify-frozen", "flmm-tabletop", "--json", "FILE.json"],
}


@pytest.mark.parametrize("case", OVERWRITES)
def test_foreign_files_are_written_over_only_by_force(capsys, monkeypatch, tmp_path, data, case):
    """``FILE`` is given itself, ``FOLDER`` is given of a file in it, ``OTHER`` is what is given plus ``.partial``."""
    words = []
    for word in OVERWRITES[case]:
        if word.startswith(("FILE", "FOLDER", "OTHER")):
            file = tmp_path / word
            file.parent.mkdir(exist_ok=True)
            file.write_text("precious")
            word = {"F": file, "O": tmp_path / "OTHER.mcap"}[word[0]] if "/" not in word else file.parent
        words.append({"IMAGE": data / "images" / "000000.png", "DATA": data}.get(word, word))
    reached = []
    monkeypatch.setattr(cli, "declare", declared_to(reached))
    line = fails(capsys, *words)
    assert "that `flmm " in line and line.endswith("name another, or write over it with --force") and not reached
    assert file.read_text() == "precious"
    assert run(*words, "--force") == 0 and reached == [True]


def declared_to(reached):
    declare = cli.declare
    return lambda subparsers: dict.fromkeys(declare(subparsers), lambda args: reached.append(True))


def test_what_a_command_wrote_is_written_again(capsys, monkeypatch, tmp_path, model, data):
    image = data / "images" / "000000.png"
    for end in ("png", "jpg", "webp"):
        outputs = ["--out", tmp_path / f"a.{end}", "--json", tmp_path / "a.json", "--masks", tmp_path / "masks"]
        assert run("ground", image, "red mug", "--refer", *outputs, *model) == 0
        assert run("ground", image, "the lemon", "--refer", *outputs, *model) == 0
    assert json.loads((tmp_path / "a.json").read_text())["written_by"] == "flmm ground"
    assert "that `flmm attention` wrote" in fails(capsys, "attention", "--out", tmp_path / "a.png", "--data", data)
    for _ in range(2):
        monkeypatch.setattr("sys.stdin", io.StringIO("/refer red mug"))
        assert run("chat", image, "--out", tmp_path / "chat", *model) == 0
    for _ in range(2):
        assert run("data", "check", data, "--out", data / "check.png") == 0


def test_a_pipe_is_no_file_of_questions(capsys, tmp_path):
    os.mkfifo(tmp_path / "questions")  # opening it would wait for a writer
    line = fails(capsys, "verify-frozen", "flmm-tabletop", "--questions", tmp_path / "questions")
    assert line.endswith(f"--questions: expected a file, got {tmp_path / 'questions'}")


def test_a_dash_is_standard_output_for_text(capfd, monkeypatch, tmp_path, model, data):
    monkeypatch.chdir(tmp_path)
    image = data / "images" / "000000.png"
    assert run("ground", image, "red mug", "--refer", "--json", "-", *model) == 0
    said = capfd.readouterr()
    assert json.loads(said.out)["answer"] == "red mug" and said.err.startswith("red mug\n")
    binary = (["ground", image, "hi", "--out"], ["ground", image, "hi", "--masks"], ["bag", image, "--command", "hi", "--out"])
    for words in binary:
        assert "expected a path, got -, standard output, which is for files of text only" in fails(capfd, *words, "-")
    assert "--markdown: expected another file than --json" in fails(
        capfd, "eval", "res", data, "--json", "-", "--markdown", "-"
    )
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_written_is_said_before_the_work(capsys, tmp_path, data):
    image = data / "images" / "000000.png"
    (tmp_path / "file").touch()
    inside = tmp_path / "file" / "sub" / "a.png"
    assert f"where {tmp_path / 'file'} is a file" in fails(capsys, "ask", "hi", "--out", inside)
    assert "expected a path in a folder" in fails(capsys, "ground", image, "hi", "--out", inside)
    assert f"--out: expected a file, got {tmp_path}, which is a folder" in fails(capsys, "ask", "hi", "--out", tmp_path)
    assert "expected a folder, got" in fails(capsys, "chat", image, "--out", tmp_path / "file")
    assert "expected a name that ends as an image's" in fails(capsys, "ask", "hi", "--out", tmp_path / "a.txt")
    assert "--json: expected another file than --out" in fails(
        capsys, "ground", image, "hi", "--out", tmp_path / "a.png", "--json", tmp_path / "a.png"
    )
    assert "where /proc/1 cannot" in fails(capsys, "export", "--out", "/proc/1/x") or os.access("/proc/1", os.W_OK)


# --- text of any encoding ---------------------------------------------------------------------------------------------------

LATIN = "caf\udce9"
"""What Python makes of the bytes of a Latin-1 terminal."""


@pytest.mark.parametrize(
    "words",
    [
        ("ground", "IMAGE", LATIN),
        ("attention", "IMAGE", LATIN),
        ("bag", "IMAGE", "--out", "x.mcap", "--command", LATIN),
        ("bag", "IMAGE", "--out", "x.mcap", "--phrase", LATIN),
        ("ask", LATIN),
        ("ask", "hi", "--node", f"/{LATIN}"),
        ("ground", "IMAGE", "hi", "--refer-prompt", LATIN),
        ("scenes", "--out", "SCRATCH", "--split", LATIN),
    ],
    ids=lambda words: "-".join(words[:1] + words[-2:-1]),
)
def test_words_of_another_encoding_give_one_line(capsys, tmp_path, data, words):
    given = {"IMAGE": data / "images" / "000000.png", "SCRATCH": tmp_path}
    line = fails(capsys, *(given.get(word, word) for word in words))
    assert ": expected UTF-8, got bytes of another encoding in" in line and "caf\\udce9" in line


def test_file_names_of_another_encoding(capsys, tmp_path, model, data):
    image = shutil.copy(data / "images" / "000000.png", tmp_path / f"{LATIN}.png")
    out = tmp_path / LATIN / "a.json"
    assert run("ground", image, "red mug", "--refer", "--json", out, "--out", tmp_path / LATIN / "a.png", *model) == 0
    assert "caf\\udce9/a.json" in capsys.readouterr().out
    assert os.fsencode(json.loads(out.read_text(encoding="utf-8"))["image"]) == os.fsencode(image)


def test_a_conversation_goes_on_after_a_line_that_cannot_be_used(capsys, monkeypatch, tmp_path, model, data):
    lines = b"where is the caf\xe9?\nwhat is [" + b"9" * 5000 + b"]?\n/refer [1]\n/refer red mug\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))
    assert run("chat", data / "images" / "000000.png", "--out", tmp_path, *model) == 0
    printed = capsys.readouterr().out
    assert "no answer: text: expected Unicode, got bytes of another encoding or half a character in 'where is" in printed
    assert "no answer: label: expected one of those given (none yet), got 99999999999999999999\n" in printed
    assert printed.count("no answer: ") == 3 and "  red mug: " in printed and (tmp_path / "001.png").is_file()


def test_messages_hold_no_control_characters(capsys):
    assert "\x1b" not in fails(capsys, "ground", "no\x1b[2J.png", "hi")
    assert one_line(ValueError("a\x1b]0;title\x07b\u202ec\udce9")) == "a ]0;title b c\\udce9"


def test_questions_of_another_encoding(capsys, tmp_path):
    (tmp_path / "questions.txt").write_bytes(b"caf\xe9?")
    line = fails(capsys, "verify-frozen", "flmm-tabletop", "--questions", tmp_path / "questions.txt")
    assert f"--questions: expected UTF-8 in {tmp_path}/questions.txt, got another encoding" in line
