"""Whatever messages hold, their readers refuse it in their own words, and allocate no more than the message is large."""

import random
import signal
import subprocess
import tracemalloc
from types import SimpleNamespace

import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("flmm_ros.msg", reason="the messages of flmm_ros are not built")

from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_msgs.msg import Header, String

from flmm_bench.stress.delivery_log import Books, Entry
from flmm_bench.stress.fuzz import fuzzed, wild
from flmm_bench.stress.report import figures, fine, table
from flmm_bench.stress.run import Findings, Life, _Course
from flmm_core.serving.requests import RefusedError
from flmm_ros import commands, conversions
from flmm_ros.client import NoReplyError
from flmm_ros.msg import GroundedAnswer, Watch
from flmm_ros.space import Space

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
                read(wild(kind, chance), 10_000)
            assert "\n" not in str(error.value)


def test_depth(little_memory):
    chance = random.Random(0)
    for _ in range(MANY):
        with pytest.raises(conversions.BadImageError):
            conversions.depth_from_message(wild(Image, chance), 10_000)


def test_depth_and_camera_info_as_they_come(little_memory):
    chance = random.Random(0)
    for _ in range(MANY // 5):
        space = Space()
        space.put_info(fuzzed(CameraInfo, chance))
        try:
            space.put_depth(fuzzed(Image, chance))
        except Exception:  # too short for a stamp: the node says so and goes on
            continue
        view = space.view(Header(), 4, 4, tolerance=1e9, max_pixels=10_000)
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


# --- the books of the stress test -----------------------------------------------------------------------------------------


def reply_to(entry, status=GroundedAnswer.STATUS_ANSWERED):
    message = GroundedAnswer(status=status, image_age=0.5)
    stamp = sum(entry.window) // 2
    message.command_stamp.sec, message.command_stamp.nanosec = stamp // 10**9, stamp % 10**9
    return message


def findings(books, status=0, faults=()):
    return Findings(books, [1.0, -2.0], [Life([1e8, 2e8], 1.0, 2.0)], 3, 1, 1, 0, 0, 1, 60.0, status, list(faults))


def test_the_books():
    books = Books()
    books.commands = [Entry(0.0, (1000 * n, 1000 * n + 500)) for n in range(1, 5)]
    books.goals = [Entry(0.0)]
    for entry in (books.commands[0], books.commands[1], books.commands[1]):
        books.reply(reply_to(entry))
    books.result(books.goals[0], GroundedAnswer(status=GroundedAnswer.STATUS_BUSY))
    assert (books.lost, books.doubled, books.strays, books.waiting()) == (2, 1, 0, 2)
    assert books.excuse() == 2 and books.lost == 0
    books.reply(reply_to(Entry(0.0, (10**12, 10**12))))
    assert books.strays == 1 and books.statuses == {"answered": 4, "busy": 1}
    record = figures(findings(books), "flmm soak")
    assert fine(record) == ["with more than one: 1", "replies to nothing: 1"]
    assert "| with more than one | 1 |" in table(record) and "command in work, ms | n 1, p50 1.0" in table(record)


class Deaf:
    """Processes and traffic of a course: as many starts as ``deaf`` says leave a node that nothing reaches."""

    def __init__(self, folder, deaf, log="[INFO] ready: loaded", status=None, end=0):
        self.folder, self.deaf, self.log, self.status, self.end, self.told = folder, deaf, log, status, end, []

    def start(self, name, *_):
        (self.folder / f"{name}.log").write_text(self.log)
        return SimpleNamespace(poll=lambda: self.status, send_signal=self.told.append, wait=self.wait)

    def wait(self, timeout):
        if self.end is None:
            raise subprocess.TimeoutExpired("node", timeout)
        return self.end

    def connect(self, timeout):
        self.deaf -= 1
        if self.deaf >= 0:
            raise NoReplyError("silent")


@pytest.mark.parametrize(("deaf", "counted"), [(0, 0), (1, 1), (2, 2)])
def test_a_node_that_nothing_reaches_is_started_once_more_and_counted(tmp_path, deaf, counted):
    world = Deaf(tmp_path, deaf)
    course = deaf_course(tmp_path, world)
    course._start_again()
    assert (course._deaf, world.told, len(course._lives)) == (counted, [signal.SIGTERM] * counted, 1)
    assert len(list(tmp_path.glob("grounding*.log"))) == counted + 1, "a log for each start"


@pytest.mark.parametrize(
    "world",
    [{"deaf": 3}, *({"deaf": 1, **fault} for fault in ({"log": "[INFO] loading"}, {"status": 0}, {"end": None}, {"end": 1}))],
    ids=["for good", "not ready", "ended", "stuck", "ends with an error"],
)
def test_what_is_the_nodes_own_fault_ends_the_stress(tmp_path, world):
    with pytest.raises(NoReplyError, match="silent"):
        deaf_course(tmp_path, Deaf(tmp_path, **world))._start_again()


def deaf_course(folder, world):
    course = object.__new__(_Course)
    course._processes = course._traffic = world
    course._log_dir, course._lives, course._deaf = folder, [], 0
    return course


def test_what_is_not_fine_is_said():
    assert fine(figures(findings(Books()), "")) == []
    assert fine(figures(findings(Books(), status=-1, faults=["Traceback"]), "")) == ["exit status: -1", "Traceback"]
    books = Books()
    books.commands = [Entry(0.0)]
    assert fine(figures(findings(books), "")) == ["without a reply: 1"]
