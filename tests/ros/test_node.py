"""What the node publishes, its parameters, and how it ends."""

import re
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from bench import IMAGE, image_of
from conftest import ExpectedEnds
from sensor_msgs.msg import Image
from std_msgs.msg import Header, String

from flmm_ros import qos
from flmm_ros.conversions import phrase_from_message
from flmm_ros.msg import GroundedAnswer


def pixels_of(message, dtype=np.uint8):
    return np.frombuffer(message.data, dtype).reshape(message.height, message.width)


def test_answer_ties_words_to_masks_under_the_header_of_the_image(bench):
    header = bench.show(frame="left_eye")
    reply = bench.ask("where is it")
    assert reply.header == header and reply.header.frame_id == "left_eye"
    assert (reply.mode, reply.command, reply.reason) == (GroundedAnswer.MODE_CHAT, "where is it", "")
    (phrase,) = reply.phrases
    assert reply.answer[phrase.start : phrase.end] == phrase.text == "It"
    assert (phrase.label, phrase.score) == (1, 0.75)
    roi = phrase.roi
    assert (roi.x_offset, roi.y_offset, roi.width, roi.height) == (0, 0, 16, 24)
    assert (phrase.mask.encoding, phrase.mask.step) == ("mono8", 16) and phrase.mask.header == header
    assert (pixels_of(phrase.mask) == 255).all()
    whole = phrase_from_message(phrase, reply.image_height, reply.image_width)
    assert whole.mask.shape == (24, 32) and whole.mask.sum() == 16 * 24


@pytest.mark.timing
def test_durations(bench):
    bench.show()
    durations = bench.ask("sleep 0.2").durations
    assert (durations.image, durations.lmm) == (pytest.approx(0.1), pytest.approx(0.2))  # as the pipeline said
    assert durations.total >= 0.2 > durations.waiting >= 0.0
    assert 0.0 < durations.conversion < 0.2


def test_refer_mode_says_nothing_aloud(bench):
    bench.show()
    reply = bench.ask("the red mug", refer=True)
    assert (reply.mode, reply.answer, reply.phrases[0].text) == (GroundedAnswer.MODE_REFER, "the red mug", "the red mug")
    assert bench.ask("speak").answer == "It said: speak"
    bench.until(lambda: "It said: speak" in [text.data for text in bench.texts])
    assert "the red mug" not in [text.data for text in bench.texts]


def test_no_phrases_is_an_answer(bench):
    header = bench.show()
    reply = bench.ask("nothing")
    assert (reply.status, reply.answer, reply.phrases) == (GroundedAnswer.STATUS_ANSWERED, "Nothing.", [])
    assert reply.reason == "no phrase was picked"
    label_map = bench.until(lambda: next((m for m in bench.label_maps if m.header == header), None))
    assert (pixels_of(label_map) == 255).all()


def test_phrases_without_room_are_named(bench):
    bench.show()
    reply = bench.ask("left")
    assert (reply.answer, [phrase.text for phrase in reply.phrases]) == ("one two three", ["on"])
    assert reply.left_out == ["two", "three"]
    assert bench.ask("hello").left_out == []


def test_a_command_that_does_not_fit_into_memory_is_refused(bench):
    header = bench.show()
    reply = bench.ask("memory")
    assert (reply.status, reply.header, reply.phrases) == (GroundedAnswer.STATUS_OUT_OF_MEMORY, Header(), [])
    assert reply.reason == "command: expected enough free memory, got too little"
    assert bench.ask("nothing").header == header


@pytest.mark.parametrize(("count", "encoding", "unlabelled"), [(1, "mono8", 255), (254, "mono8", 255), (255, "mono16", 65535)])
def test_label_map(bench, count, encoding, unlabelled):
    header = bench.show()
    reply = bench.ask(f"many {count}")
    assert [phrase.label for phrase in reply.phrases] == list(range(1, count + 1))
    bench.until(lambda: any(m.header == header and m.encoding == encoding for m in bench.label_maps[-1:]))
    bench.client.spin(0.3)
    label_map = bench.label_maps[-1]
    assert (label_map.header, label_map.encoding) == (header, encoding)
    labels = pixels_of(label_map, np.uint8 if encoding == "mono8" else np.uint16)
    assert (labels[:, :16] == count).all() and (labels[:, 16:] == unlabelled).all()


def test_overlay_for_rviz(bench):
    overlays = []
    subscription = bench.client.node.create_subscription(Image, f"{bench.name}/overlay", overlays.append, qos.images())
    bench.until(lambda: subscription.get_publisher_count() > 0)
    bench.client.spin(0.5)
    header = bench.show()
    bench.ask("draw")
    overlay = bench.until(lambda: next((m for m in overlays if m.header == header), None))
    bench.client.node.destroy_subscription(subscription)
    assert overlay.encoding == "rgb8" and overlay.width == 480 and overlay.height > 8 * 24
    assert len(overlay.data) == overlay.height * overlay.step == overlay.height * 3 * 480


def test_the_newest_image_counts(bench):
    for value in range(10, 60, 10):
        bench.images.publish(image_of(np.full((24, 32, 3), value, np.uint8)))
    bench.client.spin(0.2)
    assert bench.ask("mean").answer == "50 50 50"


def test_best_effort_camera(bench):
    publisher = bench.client.node.create_publisher(Image, "/shared/image", qos.camera())
    bench.until(lambda: publisher.get_subscription_count() > 0)
    bench.client.spin(0.3)
    publisher.publish(image_of(np.full_like(IMAGE, 77)))
    bench.client.spin(0.3)
    assert bench.ask("mean").answer == "77 77 77"
    bench.client.node.destroy_publisher(publisher)


# --- parameters -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("max_image_age", -1.0, "max_image_age"),
        ("max_image_age", float("nan"), "max_image_age"),
        ("max_image_age", "soon", "max_image_age: expected float, got str 'soon'"),
        ("max_new_tokens", 0, "max_new_tokens"),
        ("max_new_tokens", 100_000, "max_new_tokens"),
        ("max_new_tokens", 8.5, "max_new_tokens: expected int, got float 8.5"),
        ("queue_size", 4, "queue_size: can be changed only while the node is unconfigured"),
        ("lmm", "other", "lmm: can be changed only while the node is unconfigured"),
        ("max_imageage", 1.0, "unknown parameter max_imageage: did you mean max_image_age?"),
    ],
)
def test_wrong_parameters_are_refused(bench, name, value, reason):
    result = bench.set_parameter(name, value)
    assert not result.successful
    assert reason in result.reason


def test_changed_parameters_take_effect(bench):
    bench.show()
    assert bench.ask("tokens").answer == "limit 64"
    assert bench.set_parameter("max_new_tokens", 5).successful
    assert bench.ask("tokens").answer == "limit 5"
    assert bench.set_parameter("max_new_tokens", 64).successful
    assert bench.set_parameter("max_image_age", 2).successful  # a whole number for a float
    assert bench.set_parameter("max_image_age", 3.0).successful
    assert bench.ask("thresholds").answer == "0.5 0.5"
    assert bench.set_parameter("presence_threshold", 0.25).successful
    assert bench.ask("thresholds").answer == "0.25 0.5"
    assert bench.set_parameter("presence_threshold", 0.5).successful
    assert bench.set_parameter("queue_size", 8).successful  # as it is: nothing to refuse


def test_every_parameter_is_described(bench):
    names = bench.parameters.list_parameters([], 1)
    names = [n for n in bench.until(lambda: names.result() if names.done() else None).result.names if "qos" not in n]
    future = bench.parameters.describe_parameters(names)
    descriptors = bench.until(lambda: future.result() if future.done() else None).descriptors
    described = [d for d in descriptors if d.name not in ("use_sim_time", "start_type_description_service")]
    assert len(described) >= 15
    assert all(d.description for d in described)
    assert not [d.name for d in described if d.read_only]
    ranged = [d for d in described if d.type in (2, 3)]
    assert all(d.integer_range or d.floating_point_range for d in ranged)


# --- the end --------------------------------------------------------------------------------------------------------------


@pytest.mark.timing
@pytest.mark.parametrize("signals", [(signal.SIGINT,), (signal.SIGTERM,), (signal.SIGINT, signal.SIGINT, signal.SIGTERM)])
def test_shutdown_answers_what_is_in_work_and_refuses_what_waits(start_scripted, log_dir, signals):
    name = f"ending{len(signals)}{signals[0].name.lower()}"
    ending = start_scripted(name)
    ending.still_serves()
    ending.replies.clear()
    for text in ("sleep 1.0", "second", "third"):
        ending.commands.publish(String(data=text))
    ending.client.spin(0.4)
    for number in signals:
        ending.process.send_signal(number)
        ending.client.spin(0.1)
    assert ending.process.wait(timeout=3) == 0
    ending.client.spin(0.3)
    assert sorted((reply.command, reply.status) for reply in ending.replies) == [
        ("second", GroundedAnswer.STATUS_SHUTTING_DOWN),
        ("sleep 1.0", GroundedAnswer.STATUS_ANSWERED),
        ("third", GroundedAnswer.STATUS_SHUTTING_DOWN),
    ]
    assert "Traceback" not in (log_dir / f"{name}.log").read_text()


@pytest.mark.timing
@pytest.mark.parametrize("seconds", [2.1, 30])  # 2.1: the answer is ready while the node says its last words
def test_shutdown_does_not_wait_for_a_slow_answer(start_scripted, log_dir, seconds):
    name = f"slow{int(seconds)}"
    slow = start_scripted(name)
    slow.still_serves()
    slow.replies.clear()
    texts = ["after it", f"sleep {seconds}"]
    for text in reversed(texts):
        slow.commands.publish(String(data=text))
    slow.client.spin(0.4)
    slow.process.send_signal(signal.SIGTERM)
    assert slow.process.wait(timeout=3) == 0
    slow.client.spin(0.3)
    assert sorted(reply.command for reply in slow.replies) == texts
    assert {reply.status for reply in slow.replies} == {GroundedAnswer.STATUS_SHUTTING_DOWN}
    assert "Traceback" not in (log_dir / f"{name}.log").read_text()


def test_the_warm_up_goes_through_both_modes(start_scripted):
    fresh = start_scripted("fresh")
    fresh.show()
    assert fresh.ask("history").answer == "refer thing, chat thing"


def handles(process, number):
    """Whether a process has a handler of its own for a signal."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"SigCgt:\s*(\w+)", status)[1], 16) >> (number - 1) & 1


@pytest.mark.timing
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("node", ["grounding_node", "camera_node"])
def test_a_node_that_is_still_importing_ends_at_once_and_quietly(processes, log_dir, node, number):
    name = f"importing_{node}_{number.name}"
    process = processes.start(name, f"flmm_ros.{node}")
    deadline = time.monotonic() + 30
    while not handles(process, signal.SIGTERM):  # which it does first of all
        assert time.monotonic() < deadline
    process.send_signal(number)
    assert process.wait(timeout=3) == 0
    assert (log_dir / f"{name}.log").read_text() == ""


def segments(process):
    """Shared memory of the middleware that a process has open."""
    return set(re.findall(r"/dev/shm/fastdds_[0-9a-f]{16}", Path(f"/proc/{process.pid}/maps").read_text()))


@pytest.mark.parametrize(("node", "sends_images"), [("grounding_node", True), ("camera_node", True), ("pick_node", False)])
def test_shared_memory_is_for_images_and_goes_with_the_node(log_dir, other_domain, node, sends_images):
    if not Path("/dev/shm").is_dir():
        pytest.skip("no /dev/shm: the middleware keeps its shared memory elsewhere")
    with ExpectedEnds(log_dir, {"ROS_DOMAIN_ID": other_domain}) as alone:  # a node opens its peers' as well
        process = alone.start(f"alone_{node}", f"flmm_ros.{node}")
        deadline = time.monotonic() + 60
        while not segments(process):
            assert process.poll() is None and time.monotonic() < deadline, (log_dir / f"alone_{node}.log").read_text()
            time.sleep(0.1)
        time.sleep(1.0)  # one for each transport
        found = segments(process)
        assert (max(Path(name).stat().st_size for name in found) > 2**24) == sends_images
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=5) == 0
    assert not [name for name in found if Path(name).exists()]


def test_a_model_that_ends_its_thread_leaves_no_command_without_a_reply(start_scripted):
    quitting = start_scripted("quits")
    quitting.show()
    quitting.replies.clear()
    texts = ["sleep 0.5", "quit", "waits"]
    for text in texts:
        quitting.commands.publish(String(data=text))
    quitting.until(lambda: len(quitting.replies) >= 3)
    assert quitting.process.wait(timeout=3) == 1
    quitting.client.spin(0.3)
    failure = (GroundedAnswer.STATUS_MODEL_FAILURE, "cannot serve: scripted end")
    assert [reply.command for reply in quitting.replies] == texts
    assert [(reply.status, reply.reason) for reply in quitting.replies[1:]] == [failure, failure]


def test_commands_that_come_with_the_signal_get_their_replies(start_scripted):
    ending = start_scripted("rush")
    ending.still_serves()
    ending.replies.clear()
    texts = [f"number {number}" for number in range(40)]
    for text in texts:
        ending.commands.publish(String(data=text))
    ending.process.send_signal(signal.SIGTERM)
    ending.until(lambda: len(ending.replies) >= len(texts))
    assert sorted(reply.command for reply in ending.replies) == sorted(texts)
    assert ending.process.wait(timeout=10) == 0


def test_nothing_in_the_logs_looks_like_a_crash(shared_bench, log_dir):
    text = (log_dir / "shared.log").read_text()
    assert "Traceback" not in text and "[FATAL]" not in text and "event dropped" not in text
