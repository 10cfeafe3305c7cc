"""/diagnostics, and that a refusal is heard."""

from dataclasses import replace

import pytest
from bench import Bench
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus

from flmm_core.serving.health import CameraHealth, Health, percentile
from flmm_core.serving.requests import Status
from flmm_ros import qos
from flmm_ros.diagnostics import diagnostic_status
from flmm_ros.msg import GroundedAnswer, NodeStatus

CAMERA = CameraHealth(skipped=6, received=30.0, expected=30.0, ahead=0.0, trouble="the cable is loose")
LIMITS = {
    "waiting": 0,
    "working": 0.0,
    "capacity": 8,
    "camera": CAMERA,
    "oldest_image": 5.0,
    "slow_answer": 0.0,
    "device_memory": 0,
}


def said(health, **changed):
    status = diagnostic_status("/grounding", health.report(**{**LIMITS, **changed}))
    return status.level, status.message, {value.key: value.value for value in status.values}


@pytest.fixture
def ready():
    health = Health()
    health.enter("ready")
    health.loaded({"lmm": "tiny", "device": "cpu"})
    health.image()
    return health


def test_percentiles():
    assert [percentile(range(1, 101), share) for share in (0.0, 0.5, 0.95, 1.0)] == [1, 50, 95, 100]
    assert percentile([3.0], 0.95) == 3.0 and percentile([2.0, 1.0], 0.5) == 1.0


def test_states():
    health = Health()
    assert said(health)[:2] == (DiagnosticStatus.WARN, "unconfigured")
    health.enter("loading the model", "building unet: 40 %, about 30 s left")
    level, message, values = said(health)
    assert (level, message) == (DiagnosticStatus.WARN, "loading the model: building unet: 40 %, about 30 s left")
    assert values["state"] == "loading the model" and values["image age, s"] == "none yet"
    health.enter("ready")
    health.loaded({"heads backend": "onnx"})
    level, message, values = said(health)
    assert (level, message, values["heads backend"]) == (
        DiagnosticStatus.WARN,
        "no image: none has arrived yet; the cable is loose",
        "onnx",
    )
    assert said(health, oldest_image=0.0)[:2] == (DiagnosticStatus.OK, "ready")
    health.image()
    assert said(health)[:2] == (DiagnosticStatus.OK, "ready")
    health.enter("failed", "cannot serve: gone")
    assert said(health)[:2] == (DiagnosticStatus.ERROR, "cannot serve: gone")


def test_warnings(ready):
    assert said(ready, waiting=8)[:2] == (DiagnosticStatus.WARN, "busy: 8 commands are waiting (queue_size)")
    assert said(ready, oldest_image=1e-9)[1].startswith("no image: the last came 0.0 s ago")
    for total in (0.1, 0.2, 3.0):
        ready.answered({"total": total, "lmm": total / 2})
    level, message, values = said(ready, slow_answer=1.0)
    assert (level, message) == (DiagnosticStatus.WARN, "slow: 5 % of the last answers took 3.00 s or more (slow_answer)")
    assert said(ready, slow_answer=4.0)[0] == DiagnosticStatus.OK
    assert values["total p50 / p95, s"] == "0.200 / 3.000" and values["lmm p50 / p95, s"] == "0.100 / 1.500"
    assert values["answers"] == "3" and values["images skipped"] == "6"
    ready.refused(Status.BUSY, "busy")
    assert said(ready)[0] == DiagnosticStatus.OK
    ready.refused(Status.OUT_OF_MEMORY, "too little memory")
    level, message, values = said(ready, device_memory=3_000_000)
    assert (level, message) == (DiagnosticStatus.WARN, "too little memory")
    assert (values["refusals"], values["refused, busy"], values["refused, out of memory"]) == ("2", "1", "1")
    assert values["device memory, MB"] == "3" and int(values["process memory, MB"]) > 10


def test_what_a_camera_lacks(ready):
    values = said(ready)[2]
    assert (values["image rate, Hz"], values["image rate expected, Hz"]) == ("30.0", "30.0")
    level, message, values = said(ready, camera=replace(CAMERA, received=2.5))
    assert (level, message) == (DiagnosticStatus.WARN, "images are lost: 2.5 of 30.0 Hz arrive; the cable is loose")
    assert values["image rate, Hz"] == "2.5"
    unknown = replace(CAMERA, received=0.1, expected=0.0)
    assert said(ready, camera=unknown)[0] == DiagnosticStatus.OK
    assert said(ready, camera=unknown)[2]["image rate expected, Hz"] == "unknown"
    ahead = said(ready, camera=replace(CAMERA, ahead=3600.0))
    assert ahead[:2] == (DiagnosticStatus.WARN, "the camera's clock is 3600.0 s ahead")
    assert "images received" not in said(ready, camera=None)[2]


class Listener:
    """What /diagnostics says of one node."""

    def __init__(self, bench: Bench):
        self.bench, self.statuses = bench, []
        bench.client.node.create_subscription(DiagnosticArray, "/diagnostics", self.take, qos.diagnostics())

    def take(self, message):
        assert message.header.stamp.sec > 0
        self.statuses += [status for status in message.status if status.name == f"{self.bench.name}: grounding"]

    def next(self):
        self.statuses.clear()
        self.bench.until(lambda: bool(self.statuses))
        return self.statuses[-1], {value.key: value.value for value in self.statuses[-1].values}


def test_the_node_reports(bench):
    listener = Listener(bench)
    bench.show()
    before = listener.next()[1]
    bench.ask("hello")
    bench.ask("fail")
    status, values = listener.next()
    assert (status.level, status.message) == (DiagnosticStatus.WARN, "the model failed: scripted failure")
    assert status.hardware_id == "imagination"
    assert (values["state"], values["lmm"], values["heads backend"]) == ("ready", "scripted", "none")
    assert int(values["answers"]) == int(before["answers"]) + 1
    assert int(values["refused, model failure"]) == int(before.get("refused, model failure", 0)) + 1
    assert values["commands waiting"] == "0 of 8" and values["device memory, MB"] == "5"
    assert int(values["images received"]) >= 1 and "total p50 / p95, s" in values


def test_a_model_that_hangs(ready):
    ready.hangs("the model hangs")
    level, message, values = said(ready, working=33.3)
    assert (level, message, values["in progress, s"]) == (DiagnosticStatus.ERROR, "the model hangs", "33.3")
    ready.hangs("")
    assert said(ready)[:2] == (DiagnosticStatus.OK, "ready")


def test_a_command_beyond_its_deadline_is_refused_and_a_model_that_hangs_is_said(start_scripted):
    bench = start_scripted("hangs", "command_deadline:=0.3")
    listener, statuses = Listener(bench), []
    bench.client.node.create_subscription(NodeStatus, f"{bench.name}/status", statuses.append, qos.latched())
    bench.show()
    reply = bench.ask("write 400")
    assert (reply.status, reply.reason) == (
        GroundedAnswer.STATUS_MODEL_FAILURE, "the model did not answer within 0.3 s (command_deadline)",
    )  # fmt: skip
    assert bench.ask("sleep 5").reason == reply.reason
    said_ = "the model hangs: it has not returned for more than 0.3 s (command_deadline)"
    bench.until(lambda: statuses and (statuses[-1].state, statuses[-1].message) == (NodeStatus.UNRESPONSIVE, said_))
    assert bench.ask("hello").reason == said_
    assert (listener.next()[0].level, listener.statuses[-1].message) == (DiagnosticStatus.ERROR, said_)
    bench.until(lambda: statuses[-1].state == NodeStatus.READY)
    bench.still_serves()


def test_a_refusal_is_heard_by_who_listens_only(bench):
    bench.show()
    assert bench.ask("  ").status == GroundedAnswer.STATUS_EMPTY_COMMAND
    bench.until(lambda: "the command is empty" in [text.data for text in bench.texts])
    assert bench.ask("  ", refer=True).status == GroundedAnswer.STATUS_EMPTY_COMMAND
    bench.ask("hello")
    assert [text.data for text in bench.texts].count("the command is empty") == 1
