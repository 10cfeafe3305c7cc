"""Whatever messages hold, their readers refuse it in their own words, and allocate no more than the message is large."""

import random
import signal
import subprocess
import tracemalloc
from types import SimpleNamespace

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed: `make setup`")
pytest.importorskip("flmm_ros.msg", reason="the messages of flmm_ros are not built: `make setup`")

from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header, String

from flmm_bench.stress.delivery_log import DeliveryLog, Entry
from flmm_bench.stress.findings import Findings, NodeRun
from flmm_bench.stress.fuzz import fuzzed, random_message
from flmm_bench.stress.report import figures, problems, table
from flmm_bench.stress.run import StressTest
from flmm_core.serving.requests import RefusedError
from flmm_ros import commands, conversions
from flmm_ros.client import NoReplyError
from flmm_ros.depth_matcher import DepthMatcher
from flmm_ros.msg import GroundedAnswer, Watch

MANY = 1500
MOST = 50_000_000
"""Bytes that a reader may take for a message of a few hundred."""


@pytest.fixture
def little_memory():
    tracemalloc.start()
    yield
    assert tracemalloc.get_traced_memory()[1] < MOST
    tracemalloc.stop()


def test_images(little_memory):
    chance = random.Random(0)
    for kind, read in ((Image, conversions.image_from_message), (CompressedImage, conversions.image_from_compressed)):
        for _ in range(MANY):
            with pytest.raises(conversions.BadImageError) as error:
                read(random_message(kind, chance), 10_000)
            assert "\n" not in str(error.value)


def test_depth(little_memory):
    chance = random.Random(0)
    for _ in range(MANY):
        with pytest.raises(conversions.BadImageError):
            conversions.depth_from_message(random_message(Image, chance), 10_000)


def test_depth_and_camera_info_as_they_come(little_memory):
    chance = random.Random(0)
    for _ in range(MANY // 5):
        space = DepthMatcher()
        space.put_info(fuzzed(CameraInfo, chance))
        try:
            space.put_depth(fuzzed(Image, chance))
        except Exception:  # too short for a stamp: the node says so and goes on
            continue
        view = space.view(Header(), 4, 4, tolerance=1e9, max_pixels=10_000, rectified=True)
        assert view.depth is None and view.reason and "\n" not in view.reason


@pytest.mark.parametrize(
    ("kind", "read"),
    [(String, commands.decode_text), (Watch, lambda data: commands.decode_phrases(data, 32))],
    ids=["command", "watch"],
)
def test_commands(little_memory, kind, read):
    chance = random.Random(0)
    refused = 0
    for _ in range(MANY):
        try:
            read(fuzzed(kind, chance))
        except RefusedError as refusal:
            refused += 1
            assert refusal.reason and "\n" not in refusal.reason
    assert 0 < refused < MANY


def test_fuzzed_messages_differ_and_some_cannot_be_read():
    chance = random.Random(0)
    messages = [fuzzed(Image, chance) for _ in range(200)]
    assert len(set(messages)) > 150
    readable = 0
    for data in messages:
        try:
            deserialize_message(data, Image)
            readable += 1
        except Exception:
            continue
    assert 100 < readable < 200


# --- the delivery log of the stress test ----------------------------------------------------------------------------------


def reply_to(entry, status=GroundedAnswer.STATUS_ANSWERED):
    message = GroundedAnswer(status=status, image_age=0.5)
    stamp = sum(entry.published) // 2
    message.command_stamp.sec, message.command_stamp.nanosec = stamp // 10**9, stamp % 10**9
    return message


def findings(log, status=0, errors=()):
    runs = [NodeRun([1e8, 2e8], 1.0, 2.0)]
    return Findings(log, [1.0, -2.0], runs, 3, 1, 1, 0, 0, 1, 60.0, status, list(errors))


def test_the_delivery_log():
    log = DeliveryLog()
    log.commands = [Entry((1000 * n, 1000 * n + 500)) for n in range(1, 5)]
    log.goals = [Entry()]
    for entry in (log.commands[0], log.commands[1], log.commands[1]):
        log.add_reply(reply_to(entry))
    log.add_result(log.goals[0], GroundedAnswer(status=GroundedAnswer.STATUS_BUSY))
    assert (log.lost, log.duplicates, log.unmatched, log.recent_pending()) == (2, 1, 0, 2)
    assert log.record_kill() == 2 and log.lost == 0
    log.add_reply(reply_to(Entry((10**12, 10**12))))
    assert log.unmatched == 1 and log.statuses == {"answered": 4, "busy": 1}
    record = figures(findings(log), "flmm soak")
    assert problems(record) == ["duplicates: 1", "unmatched: 1"]
    assert "| duplicates | 1 |" in table(record) and "while a command runs, ms | n 1, p50 1.0" in table(record)


class Unreachable:
    """Processes and traffic of a stress test; after ``starts`` of the node, no message reaches it."""

    def __init__(self, folder, starts, log="[INFO] ready: loaded", status=None, end=0):
        self.folder, self.starts, self.log, self.status, self.end, self.told = folder, starts, log, status, end, []

    def start(self, name, *_):
        (self.folder / f"{name}.log").write_text(self.log)
        return SimpleNamespace(poll=lambda: self.status, send_signal=self.told.append, wait=self.wait)

    def wait(self, timeout):
        if self.end is None:
            raise subprocess.TimeoutExpired("node", timeout)
        return self.end

    def forget_node(self):
        """There is none."""

    def connect(self, timeout):
        self.starts -= 1
        if self.starts >= 0:
            raise NoReplyError("silent")


@pytest.mark.parametrize("starts", [0, 1, 2])
def test_an_unreachable_node_is_restarted_again_and_counted(tmp_path, starts):
    world = Unreachable(tmp_path, starts)
    test = stress_test(tmp_path, world)
    test._restart()
    assert (test._unreachable, world.told, len(test._runs)) == (starts, [signal.SIGTERM] * starts, 1)
    assert len(list(tmp_path.glob("grounding*.log"))) == starts + 1, "a log for each start"


@pytest.mark.parametrize(
    "world",
    [{"starts": 3}, *({"starts": 1, **own} for own in ({"log": "[INFO] loading"}, {"status": 0}, {"end": None}, {"end": 1}))],
    ids=["for good", "not ready", "ended", "stuck", "ends with an error"],
)
def test_what_is_the_nodes_own_fault_ends_the_stress(tmp_path, world):
    with pytest.raises(NoReplyError, match="silent"):
        stress_test(tmp_path, Unreachable(tmp_path, **world))._restart()


def stress_test(folder, world):
    test = object.__new__(StressTest)
    test._processes = test._traffic = world
    test._log_dir, test._runs, test._unreachable = folder, [], 0
    return test


def test_problems_are_reported():
    assert problems(figures(findings(DeliveryLog()), "")) == []
    assert problems(figures(findings(DeliveryLog(), status=-1, errors=["Traceback"]), "")) == ["exit status: -1", "Traceback"]
    log = DeliveryLog()
    log.commands = [Entry()]
    assert problems(figures(findings(log), "")) == ["lost: 1"]
