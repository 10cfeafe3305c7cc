"""A node that has a fleet in place of a model of its own, beside that model in this process."""

import re
import time

import numpy as np
import pytest
from bench import Bench, image_of
from diagnostic_msgs.msg import DiagnosticArray

from flmm_core.pipeline import GroundingPipeline
from flmm_ros.client import AskClient
from flmm_ros.conversions import phrase_from_message
from flmm_ros.msg import GroundedAnswer
from flmm_ros.node_processes import NodeProcesses

pytest.importorskip("ray", reason="Ray is not installed: `make setup`, or `pip install -r requirements-fleet.txt`")

EVERY_WORD = {"selector_threshold": 0.0, "presence_threshold": 0.0}


@pytest.fixture(scope="module")
def running(tiny_model, log_dir, free_port):
    """Processes, the model's parts, and the address of a fleet of it."""
    port, given = free_port(), {**tiny_model, **EVERY_WORD}
    options = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    with NodeProcesses(log_dir) as processes:
        fleet = processes.start("fleet", "flmm_cli", ["fleet", "--port", str(port), "--device", "cpu", *options])
        log, limit = log_dir / "fleet.log", time.monotonic() + 400  # a replica on a loaded machine needs minutes
        while "ready: http" not in log.read_text():
            assert fleet.poll() is None and time.monotonic() < limit, log.read_text()
            time.sleep(0.2)
        yield processes, tiny_model, f"http://127.0.0.1:{port}"
        fleet.terminate()
        assert fleet.wait(timeout=120) == 0, "as services are ended, in order"


@pytest.fixture(scope="module")
def there(running):
    """The node with the fleet."""
    processes, _, address = running
    arguments = ["--ros-args", "-r", "__ns:=/there", "-p", "max_image_age:=0.0", "-p", f"server:={address}"]
    processes.start("there", "flmm_ros.grounding_node", arguments)
    with AskClient("/there/grounding") as client:
        bench = Bench(client, "/there/grounding")
        bench.connect(processes.check)
        yield bench


@pytest.mark.parametrize("refer", [False, True], ids=["chat", "refer"])
def test_its_answers_are_those_of_the_model(there, running, refer):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    there.show(image_of(pixels))
    reply = there.ask("the red mug", refer=refer)
    assert reply.status == GroundedAnswer.STATUS_ANSWERED, reply.reason
    _, model, _ = running
    here = GroundingPipeline.from_pretrained(**{**model, **EVERY_WORD}, device="cpu")
    answer = here.refer(here.encode(pixels), "the red mug") if refer else here.chat(here.encode(pixels), "the red mug")
    assert (reply.answer, reply.image_height, reply.image_width) == (answer.text, 60, 80)
    assert len(reply.phrases) == len(answer.phrases) > 0
    for label, (message, expected) in enumerate(zip(reply.phrases, answer.phrases, strict=True), start=1):
        phrase = phrase_from_message(message, 60, 80)
        assert (phrase.text, phrase.start, phrase.end) == (expected.text, expected.start, expected.end)
        assert (phrase.box, message.label) == (expected.box, label)
        assert (phrase.mask == expected.mask).mean() > 0.99
    assert reply.durations.lmm > 0


def test_refusals_are_those_of_a_model_of_its_own(there):
    there.show()
    reply = there.ask("???")
    expected = "the command cannot be used: text: expected at least one letter or digit, got '???'"  # as in test_start.py
    assert (reply.status, reply.reason) == (GroundedAnswer.STATUS_BAD_COMMAND, expected)


def test_its_diagnostics_name_the_fleet_and_its_model(there, running):
    _, model, address = running
    node, heard = there.client.node, []
    node.create_subscription(DiagnosticArray, "/diagnostics", heard.append, 10)
    status = there.until(lambda: next((m.status[0] for m in heard if m.status[0].name.startswith("/there")), None))
    values = {pair.key: pair.value for pair in status.values}
    assert values["server"] == address
    assert re.match(re.escape(model["lmm"]), values["lmm"])
