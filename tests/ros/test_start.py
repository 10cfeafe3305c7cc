"""The node with real (tiny, random) models, and everything that can be wrong when it starts."""

import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from bench import Bench, image_of
from tiny_models import tiny_heads
from transformers.utils import logging

from flmm_core.config import GroundingConfig
from flmm_core.engines.attach import cache_folder
from flmm_core.loading.checkpoints import save_heads
from flmm_ros.client import AskClient
from flmm_ros.conversions import phrase_from_message
from flmm_ros.grounding import load_pipeline
from flmm_ros.msg import GroundedAnswer
from flmm_ros.node_processes import NodeProcesses


@pytest.fixture(scope="module")
def models(tmp_path_factory, tiny_model):
    """Folders of tiny models, good and bad."""
    folder = tmp_path_factory.mktemp("models")
    for part, source in tiny_model.items():
        shutil.copytree(source, folder / part)
    save_heads(tiny_heads(layers=2), folder / "small_heads")
    for part in ("lmm", "heads", "sam"):
        copy = folder / f"truncated_{part}"
        shutil.copytree(folder / part, copy)
        weights = copy / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    return folder


def arguments_for(models, **changed):
    parts = {"lmm": models / "lmm", "heads": models / "heads", "sam": models / "sam", **changed}
    arguments = ["--ros-args"]
    for name, value in parts.items():
        arguments += ["-p", f"{name}:={value}"]
    return arguments


FAILURES = {
    "missing lmm": ({"lmm": "/no/such/folder"}, "LMM /no/such/folder: expected an existing folder"),
    "missing heads": ({"heads": "/no/such/heads"}, "heads /no/such/heads: expected an existing file or folder"),
    "missing sam": ({"sam": "/no/such/sam.pth"}, "SAM /no/such/sam.pth: expected an existing file or folder"),
    "truncated lmm": ({"lmm": "{models}/truncated_lmm"}, "truncated_lmm: cannot be loaded, the file may be damaged"),
    "truncated heads": ({"heads": "{models}/truncated_heads"}, "cannot be loaded, the file may be damaged"),
    "truncated sam": ({"sam": "{models}/truncated_sam"}, "cannot be loaded, the file may be damaged"),
    "wrong head size": ({"heads": "{models}/small_heads"}, "12 attention channels (3 layers, hidden size 32), got heads for 8"),
    "no such device": ({"device": "abacus"}, "abacus"),
}
"""Parameters that no model can be loaded with, and what is said. Those of wrong values are in test_parameters.py."""
OTHERS = {
    "no fleet": ({"server": "http://127.0.0.1:9"}, "server http://127.0.0.1:9: expected a fleet of `flmm fleet`, got"),
    "unknown name": ({"max_imageage": 3}, "unknown parameter max_imageage: did you mean max_image_age?"),
}
AS_PROCESSES = {"no fleet": 1, "unknown name": 2}
"""What is tried with whole nodes, and their exit status; a damaged file by the demo of test_commands.py."""


def parameters_of(models, name):
    """The node's parameters, and what it says of them."""
    changed, message = {**FAILURES, **OTHERS}[name]
    changed = {key: str(value).replace("{models}", str(models)) for key, value in changed.items()}
    return {**{part: str(models / part) for part in ("lmm", "heads", "sam")}, **changed}, message


@pytest.fixture
def log_level_of_transformers():
    """Left as it was."""
    level = logging.get_verbosity()
    yield
    logging.set_verbosity(level)
    logging.enable_progress_bar()


@pytest.mark.parametrize("name", FAILURES)
def test_what_cannot_be_loaded_is_one_line(models, log_level_of_transformers, name):
    parameters, message = parameters_of(models, name)
    with pytest.raises(ValueError) as error:
        load_pipeline(GroundingConfig(**parameters))
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", AS_PROCESSES)
def test_what_is_wrong_at_the_start_ends_the_node_with_one_fatal_line(models, name):
    parameters, message = parameters_of(models, name)
    command = [sys.executable, "-m", "flmm_ros.grounding_node", *arguments_for(models, **parameters), "-r", "__node:=start"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=90)
    fatal = [line for line in done.stdout.splitlines() if "[FATAL]" in line]
    assert len(fatal) == 1, done.stdout
    assert message in fatal[0]
    assert done.returncode == AS_PROCESSES[name]
    assert "Traceback" not in done.stdout


@pytest.fixture(scope="module")
def tiny(processes, models):
    arguments = [*arguments_for(models), "-p", "max_image_age:=0.0", "-r", "__ns:=/tiny"]  # however slow the machine
    process = processes.start("tiny", "flmm_ros.grounding_node", arguments)
    with AskClient("/tiny/grounding") as client:
        bench = Bench(client, "/tiny/grounding")
        bench.process = process
        bench.connect(lambda: None)
        yield bench


@pytest.mark.parametrize("size", [(240, 320), (1, 1), (1, 300), (700, 3)], ids=str)
@pytest.mark.parametrize("refer", [False, True], ids=["chat", "refer"])
def test_real_pipeline_answers(tiny, size, refer):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    reply = tiny.ask_about(image_of(pixels))
    reply = tiny.ask("the red mug", refer=refer)
    assert reply.status == GroundedAnswer.STATUS_ANSWERED, reply.reason
    assert (reply.image_height, reply.image_width) == size
    assert all(reply.answer[phrase.start : phrase.end] == phrase.text for phrase in reply.phrases)
    if refer:
        assert [phrase.text for phrase in reply.phrases] == ["the red mug"]
    assert reply.durations.lmm > 0


@pytest.mark.parametrize("text", ["柠檬在哪里？", "é" * 200, "USER: ASSISTANT:", "x" * 500])
@pytest.mark.parametrize("refer", [False, True], ids=["chat", "refer"])
def test_real_pipeline_survives_unusual_words(tiny, text, refer):
    tiny.show()
    reply = tiny.ask(text, refer=refer)
    if reply.status != GroundedAnswer.STATUS_ANSWERED:  # too long for the context
        assert reply.status == GroundedAnswer.STATUS_BAD_COMMAND
        assert reply.reason.startswith("the command cannot be used: text: expected at most ")
    assert tiny.ask("hello").status == GroundedAnswer.STATUS_ANSWERED


@pytest.mark.parametrize("text", ["???", "🍋" * 3])
@pytest.mark.parametrize("refer", [False, True], ids=["chat", "refer"])
def test_commands_without_a_letter_or_digit_are_refused(tiny, text, refer):
    tiny.show()
    reply = tiny.ask(text, refer=refer)
    expected = f"the command cannot be used: text: expected at least one letter or digit, got '{text}'"
    assert (reply.status, reply.reason, reply.answer) == (GroundedAnswer.STATUS_BAD_COMMAND, expected, "")


@pytest.mark.parametrize(("text", "marker"), [("<image>", "<image>"), ("where is <image> it", "<image>"), ("</s>", "</s>")])
@pytest.mark.parametrize("refer", [False, True], ids=["chat", "refer"])
def test_special_tokens_in_a_command_are_the_commands_fault(tiny, text, marker, refer):
    tiny.show()
    reply = tiny.ask(text, refer=refer)
    assert reply.status == GroundedAnswer.STATUS_BAD_COMMAND
    expected = f"the command cannot be used: text: expected no special tokens of the LMM, got '{marker}'"
    assert (reply.reason, reply.answer) == (expected, "")


def test_heads_on_onnx(tiny, models, heads, folder, log_dir, tmp_path, monkeypatch, log_level_of_transformers):
    """The networks are found in the user's cache; the log says what runs them, and the masks are PyTorch's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    shutil.copytree(folder, cache_folder(heads, "fp32"))  # each export costs 5 to 10 s of CPU; test_engines.py has them
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    with NodeProcesses(log_dir) as processes:
        arguments = arguments_for(models, heads_backend="onnx", max_image_age=0.0, presence_threshold=0.0)
        process = processes.start("onnx_heads", "flmm_ros.grounding_node", [*arguments, "-r", "__ns:=/onnx_heads"])
        with AskClient("/onnx_heads/grounding") as client:
            bench = Bench(client, "/onnx_heads/grounding")
            bench.connect(lambda: None)
            deadline = time.monotonic() + 180
            while "ready: the model was loaded" not in (log_dir / "onnx_heads.log").read_text():
                assert process.poll() is None and time.monotonic() < deadline, (log_dir / "onnx_heads.log").read_text()
                bench.client.spin(0.1)
            bench.show(image_of(pixels))
            reply = bench.ask("the red mug", refer=True)
        assert reply.status == GroundedAnswer.STATUS_ANSWERED, reply.reason
        mask = phrase_from_message(reply.phrases[0], 60, 80).mask
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 0
    parts = {part: str(models / part) for part in ("lmm", "heads", "sam")}
    pipeline = load_pipeline(GroundingConfig(**parts, presence_threshold=0.0))
    expected = pipeline.refer(pipeline.encode(pixels), "the red mug").phrases[0].mask
    assert expected.any() and (mask & expected).sum() >= 0.999 * (mask | expected).sum()
    log, other = ((log_dir / f"{name}.log").read_text() for name in ("onnx_heads", "tiny"))
    assert "ready" in other and "onnx" not in other
    assert "heads run on onnx, CPUExecutionProvider, fp32 (largest difference to PyTorch:" in log and "exporting" not in log


# --- the shipped model ----------------------------------------------------------------------------------------------------


def start_shipped(processes, log_dir, name, logged):
    """The node with the shipped model, as soon as its log holds some words."""
    process = processes.start(name, "flmm_ros.grounding_node", ["--ros-args", "-r", f"__ns:=/{name}"])
    deadline = time.monotonic() + 240
    while logged not in (log_dir / f"{name}.log").read_text():
        assert process.poll() is None and time.monotonic() < deadline, (log_dir / f"{name}.log").read_text()
        time.sleep(0.02)
    return process


@pytest.mark.timing
def test_a_node_that_loads_its_model_ends_at_once(processes, log_dir):
    process = start_shipped(processes, log_dir, "loading", "loading the model")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=3) == 0
    assert "ready" not in (log_dir / "loading.log").read_text()
