"""Watch lists: grounded again and again on the newest image, followed between two passes of the model."""

import numpy as np
import pytest
from bench import image_of
from rclpy.serialization import serialize_message
from std_msgs.msg import Header

from flmm_ros import qos
from flmm_ros.msg import GroundedAnswer, NodeStatus, Watch

TEXTURE = np.repeat(
    np.kron(np.random.default_rng(0).integers(0, 255, (9, 12), np.uint8), np.ones((8, 8), np.uint8))[..., None], 3, 2
)


class Callbacks:
    """Sets lists, and collects results."""

    def __init__(self, bench):
        self.bench, node = bench, bench.client.node
        self.lists = node.create_publisher(Watch, f"{bench.name}/watch", qos.commands())
        self.results, self.statuses = [], []
        node.create_subscription(GroundedAnswer, f"{bench.name}/watched", self.results.append, qos.images())
        node.create_subscription(NodeStatus, f"{bench.name}/status", self.statuses.append, qos.latched())
        bench.until(lambda: self.lists.get_subscription_count() > 0)
        bench.client.wait_for_node(15.0)

    def watch(self, *phrases):
        self.results.clear()
        self.lists.publish(Watch(phrases=phrases))

    def show(self, shift=0):
        """An image of a camera, with its stamp."""
        message = image_of(np.ascontiguousarray(np.roll(TEXTURE, shift, axis=1)))
        message.header = Header(frame_id="camera")
        message.header.stamp = self.bench.client.node.get_clock().now().to_msg()
        self.bench.images.publish(message)
        return message.header

    def see(self, shift=0):
        """The result about a new image."""
        header = self.show(shift)
        return self.bench.until(lambda: next((r for r in self.results if r.header == header), None))


@pytest.fixture(scope="module")
def watcher(start_scripted):
    return Callbacks(start_scripted("watches", "watch_rate:=50.0", "watch_refresh:=3600.0"))


def test_each_new_image_gives_a_result(watcher):
    watcher.watch("red mug", "ball")
    first = watcher.see()
    assert (first.status, first.mode, first.request_id) == (GroundedAnswer.STATUS_ANSWERED, GroundedAnswer.MODE_WATCH, 0)
    assert first.command == "red mug. ball" and not first.tracked
    assert 0.0 < first.image_age < 2.0 and first.durations.total > 0.0
    second = watcher.see(4)
    assert second.tracked and second.phrases[0].text == first.phrases[0].text
    moved = second.phrases[0].roi.x_offset + second.phrases[0].roi.width - first.phrases[0].roi.width
    assert moved == pytest.approx(4, abs=2)
    watcher.bench.until(lambda: watcher.statuses[-1].watched == ["red mug", "ball"])
    assert watcher.statuses[-1].state == NodeStatus.READY


def test_commands_are_answered_between(watcher):
    watcher.watch("mug")
    watcher.see()
    watcher.bench.replies.clear()
    reply = watcher.bench.ask("hello")
    assert reply.answer == "It said: hello" and not reply.tracked and 0.0 < reply.image_age < 5.0
    assert watcher.see(2).status == GroundedAnswer.STATUS_ANSWERED
    assert len(watcher.bench.replies) == 1, "results of a watch list are no replies to commands"


def test_a_list_that_cannot_be_used_leaves_the_one_before(watcher):
    watcher.watch("mug")
    watcher.see()
    for phrases, reason in (
        (["x"] * 33, "the watch list is too long: expected at most 32 phrases (max_phrases), got 33"),
        (["mug", "  "], "the command is empty"),
        (["x" * 501], "the command is too long: expected at most 500 characters (max_command_length), got 501"),
    ):
        watcher.watch(*phrases)
        refusal = watcher.bench.until(lambda: next((r for r in watcher.results if r.status), None))
        assert (refusal.status != 0, refusal.reason, refusal.mode) == (True, reason, GroundedAnswer.MODE_WATCH)
    watcher.results.clear()
    watcher.lists.publish(serialize_message(Watch(phrases=["ball"]))[:11])
    refusal = watcher.bench.until(lambda: next((r for r in watcher.results if r.status), None))
    assert refusal.reason == "the watch list is malformed"
    assert watcher.see(2).command == "mug"


def test_an_empty_list_ends_it(watcher):
    watcher.watch("mug")
    watcher.see()
    watcher.watch()
    watcher.bench.until(lambda: watcher.statuses[-1].watched == [])
    watcher.results.clear()
    watcher.show()
    watcher.bench.client.spin(0.5)
    assert not watcher.results and watcher.bench.ask("hello").status == GroundedAnswer.STATUS_ANSWERED


@pytest.mark.timing
def test_the_rate_is_limited(watcher):
    assert watcher.bench.set_parameter("watch_rate", 5.0).successful
    watcher.watch("mug")
    watcher.see()
    watcher.results.clear()
    for shift in range(30):
        watcher.show(shift)
        watcher.bench.client.spin(0.033)
    assert 3 <= len(watcher.results) <= 7
    assert watcher.bench.set_parameter("watch_rate", 50.0).successful
    watcher.watch()


@pytest.mark.timing
def test_a_camera_that_stops_is_said_once(watcher):
    assert watcher.bench.set_parameter("max_image_age", 0.5).successful
    watcher.watch("mug")
    watcher.see()
    watcher.bench.client.spin(1.5)
    refusals = [result for result in watcher.results if result.status]
    assert [refusal.status for refusal in refusals] == [GroundedAnswer.STATUS_IMAGE_TOO_OLD]
    assert watcher.see(2).status == GroundedAnswer.STATUS_ANSWERED
    watcher.watch()
    assert watcher.bench.set_parameter("max_image_age", 5.0).successful
