"""Quality of service: overrides by either name of a topic, and what is said when two sides do not fit."""

import time

import pytest
import rclpy
from rclpy.parameter import Parameter
from rclpy.qos import QoSDurabilityPolicy, QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import Image
from std_msgs.msg import String

from flmm_ros import qos
from flmm_ros.msg import GroundedAnswer

PLAIN, REMAPPED = "/remapped/image", "/remapped/eye/raw"


@pytest.fixture(scope="module")
def context():
    context = rclpy.Context()
    rclpy.init(context=context, args=["--ros-args", "-r", "__ns:=/remapped", "-r", "image:=eye/raw"])
    yield context
    rclpy.try_shutdown(context=context)


@pytest.fixture
def subscribe(context):
    """The reliability that a subscription to ``image`` gets with some overrides, and those that nobody took."""
    nodes = []

    def made(**overrides):
        given = [Parameter(f"qos_overrides.{name}", value=value) for name, value in overrides.items()]
        nodes.append(rclpy.create_node("qos", context=context, parameter_overrides=given))
        subscription = qos.create_subscription(nodes[-1], Image, "image", print, qos.camera())
        assert subscription.topic_name == REMAPPED
        profile = nodes[-1].get_subscriptions_info_by_topic(REMAPPED)[-1].qos_profile
        return profile.reliability.name, qos.unused_overrides(nodes[-1])

    yield made
    for node in nodes:
        node.destroy_node()


def test_an_override_by_either_name(subscribe):
    plain, remapped = (f"{name}.subscription.reliability" for name in (PLAIN, REMAPPED))
    assert subscribe() == ("BEST_EFFORT", [])
    assert subscribe(**{plain: "reliable"}) == ("RELIABLE", [])
    assert subscribe(**{remapped: "reliable"}) == ("RELIABLE", [])
    assert subscribe(**{plain: "reliable", remapped: "best_effort"}) == ("BEST_EFFORT", []), "the name that it has counts more"


def test_an_override_that_fits_nothing_is_known(subscribe):
    name = "/remapped/imgae.subscription.reliability"
    assert subscribe(**{name: "reliable"}) == ("BEST_EFFORT", [f"qos_overrides.{name}"])


@pytest.mark.parametrize("topic", [PLAIN, REMAPPED])
@pytest.mark.parametrize(
    ("policy", "value", "message"),
    [
        ("reliability", "reliabel", "expected one of best_available, best_effort, reliable, system_default, got 'reliabel'"),
        ("history", "some", "expected one of keep_all, keep_last, system_default, got 'some'"),
        ("depth", "ten", "expected a whole number >= 0, got 'ten'"),
        ("depth", -1, "expected a whole number >= 0, got -1"),
    ],
)
def test_a_wrong_value_is_said(subscribe, topic, policy, value, message):
    with pytest.raises(ValueError, match=rf"qos_overrides.{topic}.subscription.{policy}: ") as error:
        subscribe(**{f"{topic}.subscription.{policy}": value})
    assert str(error.value).endswith(message)


def test_the_node_takes_an_override_by_the_name_before_remapping(start_scripted, log_dir):
    bench = start_scripted(
        "renamed",
        "qos_overrides./renamed/image.subscription.reliability:=reliable",
        "qos_overrides./renamed/imgae.subscription.depth:=5",
        remap=["image:=eye/raw"],
        image_topic="eye/raw",
    )
    info = bench.client.node.get_subscriptions_info_by_topic("/renamed/eye/raw")
    assert [entry.qos_profile.reliability for entry in info] == [QoSReliabilityPolicy.RELIABLE]
    assert "ignored, qos_overrides./renamed/imgae.subscription.depth" in (log_dir / "renamed.log").read_text()
    bench.still_serves()


def test_a_wrong_override_ends_the_start_with_its_reason(processes, log_dir):
    from conftest import SCRIPTED

    override = "qos_overrides./misspelt/image.subscription.reliability:=reliabel"
    process = processes.start("misspelt", SCRIPTED, ["--ros-args", "-r", "__ns:=/misspelt", "-p", override])
    assert process.wait(timeout=60) == 1
    log = (log_dir / "misspelt.log").read_text()
    assert "reliability: expected one of" in log and "Traceback" not in log


def test_what_does_not_fit_is_said_with_both_sides_and_the_remedy(bench, log_dir):
    def logged(*words):
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            bench.client.spin(0.1)
            lines = (log_dir / "shared.log").read_text().splitlines()
            if any(all(word in line for word in words) for line in lines):
                return
        raise AssertionError((log_dir / "shared.log").read_text()[-2000:])

    node = bench.client.node
    unreliable = QoSProfile(depth=5, reliability=QoSReliabilityPolicy.BEST_EFFORT)
    publisher = node.create_publisher(String, "/shared/command", unreliable)
    logged(
        "/shared/command: ",
        " (best_effort, volatile) is not heard by this node, which has reliable, volatile",
        "or set qos_overrides./shared/command.subscription.reliability:=best_effort",
    )
    late = QoSProfile(depth=5, durability=QoSDurabilityPolicy.TRANSIENT_LOCAL)
    subscription = node.create_subscription(GroundedAnswer, "/shared/grounding/answer", print, late)
    logged(
        "/shared/grounding/answer: ",
        " (reliable, transient_local) gets nothing from this node, which has reliable, volatile",
        "or set qos_overrides./shared/grounding/answer.publisher.durability:=transient_local",
    )
    node.destroy_publisher(publisher)
    node.destroy_subscription(subscription)
