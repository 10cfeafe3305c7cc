"""The action ~/ground: feedback, cancellation, and one result for each goal."""

import time

import numpy as np
import pytest
import rclpy
from action_msgs.msg import GoalStatus
from bench import IMAGE, image_of
from rclpy.action import ActionClient
from sensor_msgs.msg import Image

from flmm_ros import qos
from flmm_ros.action import Ground
from flmm_ros.client import AskClient, NoReplyError
from flmm_ros.goals import GoalServer
from flmm_ros.msg import GroundedAnswer

CHAT, REFER = Ground.Goal.MODE_CHAT, Ground.Goal.MODE_REFER


class Client:
    """Sends goals to a bench's node."""

    def __init__(self, bench):
        self.bench = bench
        self.actions = ActionClient(bench.client.node, Ground, f"{bench.name}/ground")
        self.feedback = []
        bench.until(self.actions.server_is_ready)

    def send(self, text, mode=CHAT, **fields):
        """The goal, which the node has accepted."""
        goal = Ground.Goal(mode=mode, text=text, **fields)
        sent = self.actions.send_goal_async(goal, feedback_callback=lambda said: self.feedback.append(said.feedback))
        self.bench.until(sent.done)
        assert sent.result().accepted
        return sent.result()

    def result(self, handle):
        """Status of the goal, and its reply."""
        wanted = handle.get_result_async()
        self.bench.until(wanted.done, 20.0)
        return wanted.result().status, wanted.result().result.reply

    def cancel(self, handle):
        """Whether the node agreed."""
        asked = handle.cancel_goal_async()
        self.bench.until(asked.done)
        return len(asked.result().goals_canceling) == 1

    def run(self, text, mode=CHAT, **fields):
        return self.result(self.send(text, mode, **fields))


@pytest.fixture(scope="module")
def context():
    """Of another process, as far as ROS is concerned."""
    made = rclpy.Context()
    rclpy.init(context=made, args=[])
    yield made
    rclpy.try_shutdown(context=made)


@pytest.fixture
def client(bench):
    made = Client(bench)
    yield made
    made.actions.destroy()


def test_an_answer_comes_with_feedback(bench, client):
    header = bench.show()
    status, reply = client.run("write 4")
    assert status == GoalStatus.STATUS_SUCCEEDED
    assert (reply.status, reply.answer, reply.mode) == (GroundedAnswer.STATUS_ANSWERED, "It said: write 4", CHAT)
    assert reply.header == header and len(reply.phrases) == 1 and reply.durations.total > 0.2
    assert [said.text for said in client.feedback] == ["", "word", "word word", "word word word", "word word word word"]
    assert {said.stage for said in client.feedback} == {"lmm"}
    assert reply.command_stamp.sec > 0


def test_a_phrase(bench, client):
    bench.show()
    status, reply = client.run("the red mug", REFER)
    assert (status, reply.mode, reply.phrases[0].text) == (GoalStatus.STATUS_SUCCEEDED, REFER, "the red mug")


def test_goals_are_answered_to_their_client_alone(bench, client):
    bench.show()
    bench.replies.clear()
    client.run("hello")
    bench.client.spin(0.3)
    assert not bench.replies and "It said: hello" not in [text.data for text in bench.texts]


def test_an_image_of_its_own(bench, client):
    bench.show()
    blue = image_of(np.full((10, 20, 3), (1, 2, 250), np.uint8))
    blue.header.frame_id, blue.header.stamp.sec = "gripper", 5  # of any age
    status, reply = client.run("mean", image=blue)
    assert (status, reply.answer, reply.header) == (GoalStatus.STATUS_SUCCEEDED, "1 2 250", blue.header)
    assert (reply.image_width, reply.image_height) == (20, 10)
    status, reply = client.run("mean")
    assert reply.answer == "200 100 50"
    status, reply = client.run("mean", image=Image(encoding="rgb9", data=[1]))
    assert (status, reply.status) == (GoalStatus.STATUS_ABORTED, GroundedAnswer.STATUS_BAD_IMAGE)
    assert "'rgb9'" in reply.reason


def test_a_longest_answer_of_its_own(bench, client):
    bench.show()
    assert client.run("tokens", max_new_tokens=7)[1].answer == "limit 7"
    assert client.run("tokens")[1].answer == "limit 64"
    status, reply = client.run("tokens", max_new_tokens=5000)
    assert (status, reply.status) == (GoalStatus.STATUS_ABORTED, GroundedAnswer.STATUS_BAD_COMMAND)
    assert reply.reason == "the command cannot be used: max_new_tokens: expected 1 to 1024 tokens, got 5000"


def test_most_phrases_of_its_own(bench, client):
    bench.show()
    assert client.run("phrases", max_phrases=3)[1].answer == "limit 3"
    assert client.run("phrases")[1].answer == "limit 32"
    said = "the command cannot be used: max_phrases: expected 1 to 1000 phrases, got 5000"
    assert client.run("phrases", max_phrases=5000)[1].reason == said


def test_refusals_abort(bench, client):
    bench.show()
    for text, expected in (
        ("  ", GroundedAnswer.STATUS_EMPTY_COMMAND),
        ("x" * 501, GroundedAnswer.STATUS_COMMAND_TOO_LONG),
        ("fail", GroundedAnswer.STATUS_MODEL_FAILURE),
        ("forbidden", GroundedAnswer.STATUS_BAD_COMMAND),
        ("unsendable", GroundedAnswer.STATUS_MODEL_FAILURE),
    ):
        status, reply = client.run(text)
        assert (status, reply.status) == (GoalStatus.STATUS_ABORTED, expected), text
        assert reply.reason


def test_each_goal_of_a_burst_gets_its_reply(bench, client):
    """More than rclpy queues for a service by default: those that find no room in the node's queue are told so."""
    bench.show()
    burst = ActionClient(bench.client.node, Ground, f"{bench.name}/ground", **qos.action_services())
    bench.until(burst.server_is_ready)
    sent = [burst.send_goal_async(Ground.Goal(text="hello")) for _ in range(40)]
    bench.until(lambda: all(one.done() for one in sent), 20.0)
    results = [one.result().get_result_async() for one in sent]
    bench.until(lambda: all(one.done() for one in results), 20.0)
    statuses = [one.result().result.reply.status for one in results]
    assert len(statuses) == 40 and set(statuses) <= {GroundedAnswer.STATUS_ANSWERED, GroundedAnswer.STATUS_BUSY}
    burst.destroy()


def test_a_command_that_is_given_up_at_once_is_cancelled(bench):
    def give_up():
        raise KeyboardInterrupt

    bench.show()
    with AskClient(bench.name) as client:
        client.wait_for_node(20.0)
        with pytest.raises(KeyboardInterrupt):
            client.ask("write 400", meanwhile=give_up)
    began = time.monotonic()
    assert bench.ask("hello").status == GroundedAnswer.STATUS_ANSWERED and time.monotonic() - began < 10


@pytest.mark.parametrize("mode", [GroundedAnswer.MODE_WATCH, 9])
def test_an_unknown_mode_is_refused_with_its_reason(bench, client, mode):
    status, reply = client.run("hello", mode=mode)
    assert (status, reply.status) == (GoalStatus.STATUS_ABORTED, GroundedAnswer.STATUS_BAD_COMMAND)
    assert reply.reason == f"mode: expected one of 0, 1, got {mode}" and reply.command == "hello"


@pytest.mark.timing
def test_the_goal_in_work_is_cancelled_within_a_word(bench, client):
    bench.show()
    handle = client.send("write 200")
    bench.until(lambda: len(client.feedback) > 2)
    asked = time.monotonic()
    assert client.cancel(handle)
    status, reply = client.result(handle)
    assert (status, reply.status) == (GoalStatus.STATUS_CANCELED, GroundedAnswer.STATUS_CANCELLED)
    assert reply.reason == "the client cancelled the command"
    assert bench.ask("last").answer.startswith("stopped after ")
    assert time.monotonic() - asked < 1.5
    words = len(client.feedback)
    bench.client.spin(0.3)
    assert len(client.feedback) == words, "expected no feedback of a cancelled goal"


def test_a_waiting_goal_is_cancelled_at_once(bench, client):
    bench.show()
    first, second = client.send("write 20"), client.send("count")
    assert client.cancel(second)
    status, reply = client.result(second)
    assert (status, reply.status) == (GoalStatus.STATUS_CANCELED, GroundedAnswer.STATUS_CANCELLED)
    status, reply = client.result(first)
    assert (status, reply.answer) == (GoalStatus.STATUS_SUCCEEDED, "It said: write 20")
    before = int(bench.ask("count").answer.removeprefix("call "))
    assert int(bench.ask("count").answer.removeprefix("call ")) == before + 1


def test_what_is_finished_cannot_be_cancelled(bench, client):
    bench.show()
    handle = client.send("hello")
    client.result(handle)
    assert not client.cancel(handle)
    assert client.result(handle)[0] == GoalStatus.STATUS_SUCCEEDED


def test_cancelling_in_the_last_word_gives_one_result(bench, client):
    bench.show()
    for words in (1, 2, 3):
        handle = client.send(f"write {words}")
        time.sleep(0.05 * words)
        agreed = client.cancel(handle)
        status, reply = client.result(handle)
        if agreed:
            assert (status, reply.status) == (GoalStatus.STATUS_CANCELED, GroundedAnswer.STATUS_CANCELLED)
        else:
            assert (status, reply.status) == (GoalStatus.STATUS_SUCCEEDED, GroundedAnswer.STATUS_ANSWERED)


def test_goals_beyond_the_queue_are_refused_as_busy(bench, client):
    bench.show()
    running = client.send("write 10")
    bench.until(lambda: len(client.feedback) > 0)
    waiting = [client.send("hello") for _ in range(8)]
    status, reply = client.run("one more")
    assert (status, reply.status) == (GoalStatus.STATUS_ABORTED, GroundedAnswer.STATUS_BUSY)
    assert reply.reason == "busy: 8 commands are waiting already (queue_size)" and reply.command == "one more"
    assert [client.result(handle)[0] for handle in (running, *waiting)] == [GoalStatus.STATUS_SUCCEEDED] * 9


def order_of_answers(client, goals):
    """Send goals while the node is at work, each as client and text; the texts in the order in which they are answered."""
    running = client.send("write 20")
    client.bench.until(lambda: len(client.feedback) > 0)
    order, results = [], [client.send(text, client=name).get_result_async() for name, text in goals]
    for (_, text), result in zip(goals, results, strict=True):
        result.add_done_callback(lambda _, text=text: order.append(text))
    client.result(running)
    client.bench.until(lambda: len(order) == len(goals))
    assert {result.result().status for result in results} == {GoalStatus.STATUS_SUCCEEDED}
    return order


def test_the_clients_that_goals_name_take_turns(bench, client):
    bench.show()
    goals = [("a", "sleep 0.10"), ("a", "sleep 0.11"), ("a", "sleep 0.12"), ("b", "sleep 0.13"), ("c", "sleep 0.14")]
    assert order_of_answers(client, goals) == [f"sleep 0.{n}" for n in (10, 13, 14, 11, 12)]


def test_goals_that_name_no_client_share_one_turn(bench, client):
    bench.show()
    goals = [("", "sleep 0.10"), ("", "sleep 0.11"), ("b", "sleep 0.12")]
    assert order_of_answers(client, goals) == [f"sleep 0.{n}" for n in (10, 12, 11)]


def test_a_client_that_goes_away_leaves_a_serving_node(bench):
    bench.show()
    for _ in range(3):
        client = Client(bench)
        client.send("write 3")
        client.actions.destroy()
    assert bench.ask("hello").answer == "It said: hello"


def test_the_goals_of_a_client_that_has_left_are_cancelled(bench, client, context):
    """A goal that names its node: what the next client waits for is not an answer that nobody reads."""
    node = rclpy.create_node("leaver", context=context)
    name = node.get_fully_qualified_name()
    bench.until(lambda: name in bench.client.node.get_fully_qualified_node_names())
    bench.show()
    running, waiting = client.send("write 400", client=name), client.send("hello", client=name)
    bench.client.spin(1.5)  # the node looks once a second who is there
    node.destroy_node()
    status, reply = client.result(running)
    assert (status, reply.status) == (GoalStatus.STATUS_ABORTED, GroundedAnswer.STATUS_CANCELLED)
    assert reply.reason == "its client /leaver has left"
    assert client.result(waiting)[1].reason == "its client /leaver has left"
    assert bench.ask("last").answer.startswith("stopped after ")


def test_a_node_that_is_killed_meanwhile_is_noticed(start_scripted, processes, monkeypatch):
    monkeypatch.setattr("flmm_ros.pulse._SILENCE", 2.0)
    bench = start_scripted("killed")
    bench.images.publish(image_of(IMAGE))
    began = time.monotonic()

    def kill():
        if bench.process.poll() is None and time.monotonic() > began + 1.2:
            bench.process.kill()

    with pytest.raises(NoReplyError, match=r"^/killed/grounding has given no sign of life for 2 s: it was killed, or it hangs"):
        bench.client.ask("sleep 30", meanwhile=kill, timeout=30.0)
    assert time.monotonic() < began + 10.0


def test_a_node_that_is_restarted_meanwhile_is_noticed(start_scripted, processes, monkeypatch):
    from conftest import SCRIPTED

    monkeypatch.setattr("flmm_ros.pulse._SILENCE", 60.0)  # a busy machine starts the new process slowly
    bench = start_scripted("restarted")
    bench.images.publish(image_of(IMAGE))
    began = time.monotonic()

    def restart():
        if bench.process.poll() is None and time.monotonic() > began + 1.2:
            bench.process.kill()
            processes.start("restarted", SCRIPTED, ["--ros-args", "-r", "__ns:=/restarted"])

    with pytest.raises(NoReplyError, match="/restarted/grounding has left or was restarted before it replied"):
        bench.client.ask("sleep 30", meanwhile=restart, timeout=30.0)


def test_a_node_that_ends_answers_its_goals(start_scripted):
    bench = start_scripted("ending")
    client = Client(bench)
    bench.images.publish(image_of(IMAGE))
    handles = [client.send("sleep 20"), client.send("hello")]
    wanted = [handle.get_result_async() for handle in handles]
    bench.client.spin(0.5)
    bench.process.terminate()
    bench.until(lambda: all(one.done() for one in wanted), 10.0)
    assert [one.result().result.reply.status for one in wanted] == [GroundedAnswer.STATUS_SHUTTING_DOWN] * 2
    assert {one.result().status for one in wanted} == {GoalStatus.STATUS_ABORTED}
    assert bench.process.wait(timeout=5) == 0


def test_a_client_that_gives_up_cancels_its_command(bench):
    bench.show()
    with pytest.raises(NoReplyError, match=r"^no reply to 'write 200' within 1 s$"):
        bench.client.ask("write 200", timeout=1.0)
    assert bench.ask("last").answer.startswith("stopped after ")


def test_goals_may_end_while_their_clients_are_looked_for():
    """Replies come in the server's thread."""

    goals = object.__new__(GoalServer)

    class Ending:
        @property
        def request(self):
            goals._goals.clear()
            return Ground.Goal()

    goals._goals = {b"a": Ending(), b"b": Ending()}
    goals._check_clients()
    assert not goals._goals
