"""The node's states: brought up by itself or by a manager, again and again, and what is said of each."""

import signal
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from action_msgs.msg import GoalStatus
from bench import IMAGE, Bench, image_of
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from std_msgs.msg import String

from flmm_core.common.process_memory import resident_bytes
from flmm_ros import qos
from flmm_ros.client import AskClient
from flmm_ros.grounding import _take_all
from flmm_ros.msg import GroundedAnswer, NodeStatus

CONFIGURE, CLEANUP = Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_CLEANUP
ACTIVATE, DEACTIVATE = Transition.TRANSITION_ACTIVATE, Transition.TRANSITION_DEACTIVATE


class Manager:
    """Changes the states of a bench's node."""

    def __init__(self, bench):
        self.bench, node = bench, bench.client.node
        self.changes = node.create_client(ChangeState, f"{bench.name}/change_state")
        self.states = node.create_client(GetState, f"{bench.name}/get_state")
        self.statuses = []
        node.create_subscription(NodeStatus, f"{bench.name}/status", self.statuses.append, qos.latched())
        bench.until(lambda: self.changes.service_is_ready() and self.states.service_is_ready(), 60.0)

    def call(self, client, request, timeout=60.0):
        future = client.call_async(request)
        return self.bench.until(lambda: future.result() if future.done() else None, timeout)

    def change(self, *transitions):
        """Whether all succeeded."""
        return all(self.call(self.changes, ChangeState.Request(transition=Transition(id=t))).success for t in transitions)

    @property
    def state(self):
        return self.call(self.states, GetState.Request()).current_state.id


@pytest.fixture(scope="module")
def managed(processes):
    """A node that waits for its manager."""
    from conftest import SCRIPTED

    process = processes.start("managed", SCRIPTED, ["--ros-args", "-r", "__ns:=/managed", "-p", "autostart:=false"])
    with AskClient("/managed/grounding") as client:
        bench = Bench(client, "/managed/grounding")
        bench.process = process
        bench.until(bench.parameters.services_are_ready, 60.0)
        yield Manager(bench)


def connected(manager):
    manager.bench.client.wait_for_node(30.0)
    manager.bench.wait_for_readers()
    return manager.bench


def test_nothing_is_loaded_until_it_is_asked_for(managed):
    managed.bench.client.spin(0.5)
    assert managed.state == State.PRIMARY_STATE_UNCONFIGURED
    assert managed.bench.commands.get_subscription_count() == 0
    managed.bench.until(lambda: bool(managed.statuses))  # an empty list is not waited for
    assert [status.state for status in managed.statuses] == [NodeStatus.UNCONFIGURED]
    assert not managed.change(ACTIVATE) and managed.state == State.PRIMARY_STATE_UNCONFIGURED


def test_up_and_down(managed):
    # Of a latched topic the last message alone is kept: a model loaded within milliseconds would hide that it was loading.
    assert managed.bench.set_parameter("refer_prompt", "brief").successful
    assert managed.change(CONFIGURE) and managed.state == State.PRIMARY_STATE_INACTIVE
    assert managed.bench.commands.get_subscription_count() == 0
    assert managed.change(ACTIVATE) and managed.state == State.PRIMARY_STATE_ACTIVE
    connected(managed).still_serves()
    assert managed.change(DEACTIVATE) and managed.state == State.PRIMARY_STATE_INACTIVE
    managed.bench.until(lambda: managed.bench.commands.get_subscription_count() == 0)
    assert managed.change(ACTIVATE)
    assert connected(managed).ask("hello").status == GroundedAnswer.STATUS_NO_IMAGE, "images of an earlier life are gone"
    managed.bench.still_serves()
    assert managed.change(DEACTIVATE, CLEANUP) and managed.state == State.PRIMARY_STATE_UNCONFIGURED
    managed.bench.until(lambda: managed.statuses[-1].state == NodeStatus.UNCONFIGURED)
    states = [status.state for status in managed.statuses]
    assert states[:5] == [
        NodeStatus.UNCONFIGURED,
        NodeStatus.LOADING,
        NodeStatus.INACTIVE,
        NodeStatus.READY,
        NodeStatus.INACTIVE,
    ]
    assert managed.bench.set_parameter("refer_prompt", "whole").successful


def test_services_answer_while_the_model_loads(managed):
    """The watchdog that docs/reliability.md recommends is right meanwhile, and so is a lifecycle manager that asks."""
    assert managed.bench.set_parameter("refer_prompt", "brief").successful
    loading = managed.changes.call_async(ChangeState.Request(transition=Transition(id=CONFIGURE)))
    managed.bench.until(lambda: managed.statuses and managed.statuses[-1].state == NodeStatus.LOADING)
    assert managed.state == State.TRANSITION_STATE_CONFIGURING
    listed = managed.bench.parameters.list_parameters(["device"])
    managed.bench.until(listed.done)
    assert not managed.change(CONFIGURE), "one transition at a time"
    assert managed.bench.set_parameter("queue_size", 4).reason.endswith("only while the node is unconfigured")
    assert not loading.done(), "all this while the model was loading"
    managed.bench.until(loading.done)
    assert loading.result().success and managed.state == State.PRIMARY_STATE_INACTIVE
    assert managed.change(CLEANUP) and managed.bench.set_parameter("refer_prompt", "whole").successful


def test_a_cleanup_that_fails_leaves_a_node_that_serves(managed):
    assert managed.change(CONFIGURE, ACTIVATE)
    bench = connected(managed)
    bench.still_serves()
    bench.replies.clear()
    bench.commands.publish(String(data="sleep 4.5"))
    bench.client.spin(0.2)
    assert managed.change(DEACTIVATE) and not managed.change(CLEANUP)
    managed.bench.until(lambda: managed.statuses[-1].message == "cannot clean up: a command is still in progress")
    assert managed.statuses[-1].state == NodeStatus.INACTIVE and managed.state == State.PRIMARY_STATE_INACTIVE
    assert managed.change(ACTIVATE)
    connected(managed).still_serves()
    assert managed.change(DEACTIVATE, CLEANUP)


def test_parameters_are_read_when_it_is_configured(managed):
    assert managed.bench.set_parameter("queue_size", 3).successful
    assert managed.change(CONFIGURE)
    result = managed.bench.set_parameter("queue_size", 4)
    assert result.reason == "parameter queue_size: can be changed only while the node is unconfigured"
    assert managed.change(CLEANUP) and managed.bench.set_parameter("queue_size", 8).successful


def test_a_transition_that_fails_leaves_a_usable_node_and_its_reason(managed, log_dir):
    assert managed.bench.set_parameter("refer_prompt", "broken").successful
    assert not managed.change(CONFIGURE) and managed.state == State.PRIMARY_STATE_UNCONFIGURED
    reason = "cannot configure: scripted: broken"
    managed.bench.until(lambda: managed.statuses[-1].message == reason)
    log = (log_dir / "managed.log").read_text()
    assert "[ERROR]" in log and reason in log and "Traceback" not in log
    assert managed.bench.set_parameter("refer_prompt", "whole").successful
    assert managed.change(CONFIGURE, ACTIVATE)
    connected(managed).still_serves()
    assert managed.change(DEACTIVATE, CLEANUP)


def test_deactivation_replies_to_every_command(managed):
    assert managed.change(CONFIGURE, ACTIVATE)
    bench = connected(managed)
    bench.still_serves()
    bench.replies.clear()
    for text in ("sleep 0.5", *(f"number {n}" for n in range(30))):
        bench.commands.publish(String(data=text))
    assert managed.change(DEACTIVATE)
    bench.until(lambda: len(bench.replies) >= 31)
    bench.client.spin(0.5)
    assert sorted(reply.command for reply in bench.replies) == sorted(["sleep 0.5", *(f"number {n}" for n in range(30))])
    statuses = {reply.status for reply in bench.replies}
    allowed = {GroundedAnswer.STATUS_ANSWERED, GroundedAnswer.STATUS_BUSY, GroundedAnswer.STATUS_SHUTTING_DOWN}
    assert GroundedAnswer.STATUS_SHUTTING_DOWN in statuses <= allowed
    assert "the node was deactivated" in {reply.reason for reply in bench.replies}
    assert managed.change(ACTIVATE)
    connected(managed).still_serves()
    assert managed.change(DEACTIVATE, CLEANUP)


@pytest.mark.soak
def test_twenty_cycles_do_not_grow(managed):
    sizes = []
    for _ in range(20):
        assert managed.change(CONFIGURE, ACTIVATE)
        bench = connected(managed)
        bench.ask_about(image_of(IMAGE))
        assert managed.change(DEACTIVATE, CLEANUP)
        sizes.append(resident_bytes(bench.process.pid))
    assert max(sizes[10:]) - max(sizes[:10]) < 4e6, [round(size / 1e6, 1) for size in sizes]


def test_a_node_that_is_not_active_refuses_goals(managed):
    from rclpy.action import ActionClient

    from flmm_ros.action import Ground

    actions = ActionClient(managed.bench.client.node, Ground, f"{managed.bench.name}/ground")
    managed.bench.until(actions.server_is_ready)
    sent = actions.send_goal_async(Ground.Goal(text="hello"))
    managed.bench.until(sent.done)
    result = sent.result().get_result_async()
    managed.bench.until(result.done)
    reply = result.result().result.reply
    assert (result.result().status, reply.status) == (GoalStatus.STATUS_ABORTED, GroundedAnswer.STATUS_SHUTTING_DOWN)
    assert reply.reason == "the node was deactivated"
    actions.destroy()


def test_a_manager_may_shut_it_down(managed):
    assert managed.change(CONFIGURE, ACTIVATE)
    bench, diagnostics = connected(managed), []
    bench.client.node.create_subscription(DiagnosticArray, "/diagnostics", diagnostics.append, qos.diagnostics())
    bench.still_serves()
    bench.commands.publish(String(data="sleep 4.5"))
    bench.client.spin(0.2)
    assert managed.change(Transition.TRANSITION_ACTIVE_SHUTDOWN)
    assert managed.state == State.PRIMARY_STATE_FINALIZED
    bench.until(lambda: managed.statuses[-1].state == NodeStatus.FINALIZED)
    late = []  # a latched topic tells who comes later, too
    bench.client.node.create_subscription(NodeStatus, f"{bench.name}/status", late.append, qos.latched())
    said = "a command is still in progress: its model is not freed"
    bench.until(lambda: late and late[0].state == NodeStatus.FINALIZED and late[0].message == said)
    diagnostics.clear()
    bench.until(lambda: any(one.name.startswith(bench.name) for message in diagnostics for one in message.status))
    assert [one.message for one in diagnostics[-1].status] == [f"shut down: {said}"]
    managed.bench.process.send_signal(signal.SIGINT)
    assert managed.bench.process.wait(timeout=3) == 0


@pytest.mark.timing
def test_ctrl_c_while_the_model_loads(processes, log_dir):
    from conftest import SCRIPTED

    arguments = ["--ros-args", "-r", "__ns:=/loads", "-p", "refer_prompt:=slow"]
    process = processes.start("loads", SCRIPTED, arguments)
    deadline = time.monotonic() + 60
    while "loading the model" not in (log_dir / "loads.log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    with AskClient("/loads/grounding") as client:
        loading = NodeStatus.LOADING
        client.wait_until(lambda: client.status and client.status.state == loading, 10.0, "it does not say that it is loading")
        process.send_signal(signal.SIGINT)
        client.wait_until(lambda: client.status.state == NodeStatus.FINALIZED, 3.0, "it does not say that it was shut down")
    assert process.wait(timeout=3) == 0
    assert (log_dir / "loads.log").read_text().count("\n") == 2


@pytest.mark.soak
def test_the_model_of_the_shipped_size_is_freed(processes):
    """With the real model: what cleanup gives back is most of what configure took."""
    arguments = ["--ros-args", "-r", "__ns:=/freed", "-p", "autostart:=false"]
    process = processes.start("freed", "flmm_ros.grounding_node", arguments)
    with AskClient("/freed/grounding") as client:
        bench = Bench(client, "/freed/grounding")
        bench.until(bench.parameters.services_are_ready, 90.0)
        manager = Manager(bench)
        assert manager.change(CONFIGURE, CLEANUP)  # libraries that stay are loaded now
        sizes = {}
        for cycle in range(3):
            assert manager.change(CONFIGURE, ACTIVATE)
            connected(manager)
            assert bench.set_parameter("max_image_age", 0.0).successful
            bench.images.publish(image_of(np.full((240, 320, 3), 90, np.uint8)))
            client.spin(0.5)
            assert client.ask("the red mug", refer=True, timeout=60.0).status == GroundedAnswer.STATUS_ANSWERED
            loaded = resident_bytes(process.pid)
            assert manager.change(DEACTIVATE, CLEANUP)
            sizes[cycle] = loaded, resident_bytes(process.pid)
    print({cycle: [round(size / 1e6) for size in pair] for cycle, pair in sizes.items()})
    weights = sum(path.stat().st_size for path in Path("flmm_tabletop/model").rglob("*.safetensors"))
    assert all(loaded - freed > weights for loaded, freed in sizes.values()), sizes
    assert sizes[2][1] - sizes[0][1] < 20e6, sizes


def test_a_flood_of_commands_does_not_keep_a_node_from_being_deactivated():
    """As many are taken as may have waited before."""

    class Handle(nullcontext):
        left = 5 * qos.COMMAND_DEPTH

        def take_message(self, *_):
            self.left -= 1
            return (b"command", {}) if self.left else None

    taken = []
    flood = SimpleNamespace(handle=Handle(), msg_type=String, qos_profile=qos.commands())
    _take_all(flood, lambda *command: taken.append(command))
    assert len(taken) == qos.COMMAND_DEPTH
