"""A node that has a fleet in place of a model of its own, beside one that has a model."""

import re
import time

import numpy as np
import pytest
from bench import Bench, image_of
from diagnostic_msgs.msg import DiagnosticArray

from flmm_ros.client import AskClient
from flmm_ros.msg import GroundedAnswer
from flmm_ros.node_processes import NodeProcesses

pytest.importorskip("ray", reason="Ray is not installed: `make setup`, or `pip install -r requirements-fleet.txt`")


@pytest.fixture(scope="module")
def running(tiny_model, log_dir, free_port):
    """Processes, the model's options, and the address of a fleet of it."""
    every_word = {"selector_threshold": "0.0", "presence_threshold": "0.0"}
    port = free_port()
    options = [word for name, value in {**tiny_model, **every_word}.items() for word in (f"--{name.replace('_', '-')}", value)]
    with NodeProcesses(log_dir) as processes:
        fleet = processes.start("fleet", "flmm_cli", ["fleet", "--port", str(port), "--device", "cpu", *options])
        log, limit = log_dir / "fleet.log", time.monotonic() + 120
        while "ready: http" not in log.read_text():
            assert fleet.poll() is None and time.monotonic() < limit, log.read_text()
            time.sleep(0.2)
        yield processes, {**tiny_model, **every_word}, f"http://127.0.0.1:{port}"
        fleet.terminate()
        assert fleet.wait(timeout=30) == 0, "as services are ended, in order"


@pytest.fixture(scope="module")
def benches(running):
    """The node with a model of its own, and the node with the fleet."""
    processes, model, address = running
    given = {"here": model, "there": {"server": address}}
    made = {}
    for name, parameters in given.items():
        arguments = ["--ros-args", "-r", f"__ns:=/{name}", "-p", "max_image_age:=0.0"]
        for key, value in parameters.items():
            arguments += ["-p", f"{key}:={value}"]
        processes.start(name, "flmm_ros.grounding_node", arguments)
    for name in given:
        client = AskClient(f"/{name}/grounding")
        client.__enter__()
        made[name] = Bench(client, f"/{name}/grounding")
        made[name].connect(processes.check)
    yield made
    for bench in made.values():
        bench.client.__exit__(None, None, None)


@pytest.mark.parametrize("refer", [False, True], ids=["chat", "refer"])
def test_its_answers_are_those_of_a_model_of_its_own(benches, refer):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 80, 3), np.uint8)
    replies = {}
    for name, bench in benches.items():
        bench.show(image_of(pixels))
        replies[name] = bench.ask("the red mug", refer=refer)
    here, there = replies["here"], replies["there"]
    assert here.status == there.status == GroundedAnswer.STATUS_ANSWERED, there.reason
    assert (here.answer, here.image_height, here.image_width) == (there.answer, there.image_height, there.image_width)
    assert len(here.phrases) == len(there.phrases) > 0
    for one, two in zip(here.phrases, there.phrases, strict=True):
        assert (one.text, one.start, one.end, one.label, one.roi) == (two.text, two.start, two.end, two.label, two.roi)
        assert (np.frombuffer(one.mask.data, np.uint8) == np.frombuffer(two.mask.data, np.uint8)).mean() > 0.99
    assert there.durations.lmm > 0


def test_refusals_are_the_same(benches):
    for bench in benches.values():
        bench.show()
    here, there = (bench.ask("???") for bench in benches.values())
    assert (here.status, here.reason) == (there.status, there.reason)
    assert here.status == GroundedAnswer.STATUS_BAD_COMMAND


def test_its_diagnostics_name_the_fleet_and_its_model(benches, running):
    _, model, address = running
    node, heard = benches["there"].client.node, []
    node.create_subscription(DiagnosticArray, "/diagnostics", heard.append, 10)
    status = benches["there"].until(lambda: next((m.status[0] for m in heard if m.status[0].name.startswith("/there")), None))
    values = {pair.key: pair.value for pair in status.values}
    assert values["server"] == address
    assert re.match(re.escape(model["lmm"]), values["lmm"])
