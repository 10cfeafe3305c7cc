"""The topics, services and actions of the running nodes are those of the reference."""

import json
import re
from functools import partial
from xml.etree import ElementTree

import pytest
from documents import REFERENCE, ROOT, document, names, table
from rclpy.qos import QoSProfile, QoSReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image

from flmm_ros.client import AskClient

OF_EVERY_NODE = {"/rosout", "/parameter_events"}
OF_LIFECYCLES = {"transition_event"}
OPTIONAL = "vision_msgs/"


def documented(node, full):
    """``{(topic, direction, type)}`` of the reference, with full names."""
    found = set()
    for name, direction, kind, _ in table(document(REFERENCE), "Topics", f"{node}_node"):
        topic, kind = names(name)[0], names(kind)[0]
        namespace = full.rsplit("/", 1)[0]
        topic = topic.replace("~", full) if topic[0] == "~" else topic if topic[0] == "/" else f"{namespace}/{topic}"
        found.add((topic, direction, kind.replace("/", "/msg/")))
    return found


def running(client, full):
    """The same of the graph."""
    namespace, name = full.rsplit("/", 1)
    known = client.node.get_node_names_and_namespaces
    client.wait_until(lambda: (name, namespace or "/") in known(), 15.0, f"no {full} in the graph")
    found = set()
    for direction, ask in (
        ("out", client.node.get_publisher_names_and_types_by_node),
        ("in", client.node.get_subscriber_names_and_types_by_node),
    ):
        for topic, kinds in ask(name, namespace or "/"):
            ours = topic not in OF_EVERY_NODE and "/_action/" not in topic and topic.rsplit("/", 1)[1] not in OF_LIFECYCLES
            found |= {(topic, direction, kind) for kind in kinds if ours}
    return found


def test_topics_of_the_grounding_node(shared_bench):
    expected = {row for row in documented("grounding", "/shared/grounding") if not row[2].startswith(OPTIONAL)}
    expected -= {row for row in expected if row[0].endswith(("/image/compressed", "/compressedDepth"))}
    assert running(shared_bench.client, "/shared/grounding") == expected


def test_the_other_transport(start_scripted):
    bench = start_scripted(
        "transport",
        "image_transport:=compressed",
        "depth_transport:=compressedDepth",
        remap=["depth:=front/depth"],
        image_type=CompressedImage,
        image_topic="image/compressed",
    )
    inputs = {topic for topic, direction, _ in running(bench.client, "/transport/grounding") if direction == "in"}
    assert {"/transport/image/compressed", "/transport/front/depth/compressedDepth"} <= inputs
    assert not inputs & {"/transport/image", "/transport/depth", "/transport/front/depth"}


def test_topics_of_the_camera(processes, open_renderer):
    open_renderer().close()
    processes.start("camera_graph", "flmm_ros.camera_node", ["--ros-args", "-r", "__ns:=/graph"])
    with AskClient("/graph/grounding") as client:
        client.wait_until(lambda: client.node.count_publishers("/graph/camera/image") > 0, 60.0, "no camera")
        client.spin(0.5)
        assert running(client, "/graph/camera") == documented("camera", "/graph/camera")


def test_a_best_effort_reader_gets_the_images_of_the_camera(processes, open_renderer):
    """Two megabytes at a time: more than the middleware has room for by default."""
    open_renderer().close()
    arguments = ["--ros-args", "-r", "__ns:=/large", "-p", "width:=640", "-p", "height:=480", "-p", "rate:=10.0"]
    processes.start("large_camera", "flmm_ros.camera_node", arguments)
    patient = QoSProfile(depth=50, reliability=QoSReliabilityPolicy.BEST_EFFORT)  # what is lost is lost on the way
    stamps = {"image": [], "depth": []}

    def note(topic, message):
        stamps[topic].append((message.header.stamp.sec, message.header.stamp.nanosec))

    with AskClient("/large/grounding") as client:
        for topic in stamps:
            client.node.create_subscription(Image, f"/large/camera/{topic}", partial(note, topic), patient)
        client.wait_until(lambda: min(map(len, stamps.values())) >= 30, 90.0, lambda: f"got {stamps}")
    first, last = max(seen[0] for seen in stamps.values()), min(seen[-1] for seen in stamps.values())
    images, depths = ({stamp for stamp in seen if first <= stamp <= last} for seen in stamps.values())
    assert len(images & depths) >= 0.9 * len(images | depths), stamps


def test_actions(shared_bench):
    from rclpy.action import get_action_server_names_and_types_by_node

    found = get_action_server_names_and_types_by_node(shared_bench.client.node, "grounding", "/shared")
    assert found == [("/shared/grounding/ground", ["flmm_ros/action/Ground"])]


@pytest.mark.parametrize("service", ["change_state", "get_state", "get_available_transitions"])
def test_lifecycle_services(shared_bench, service):
    services = dict(shared_bench.client.node.get_service_names_and_types_by_node("grounding", "/shared"))
    assert f"/shared/grounding/{service}" in services


def test_the_policy_names_everything_that_the_node_does(shared_bench):
    """SROS 2: a topic that the policy lacks could not be published."""
    enclaves = ElementTree.parse(ROOT / "security" / "policy.xml").getroot().find("enclaves")
    profile = next(enclave for enclave in enclaves if enclave.get("path") == "/grounding").find(".//profile")

    def allowed(kind, **right):
        entries = [group for group in profile.findall(f"{kind}s") if dict(group.attrib) == right]
        names = [entry.text for group in entries for entry in group]
        return {name.replace("~", "/shared/grounding") if name[0] in "~/" else f"/shared/{name}" for name in names}

    node = shared_bench.client.node
    for found, expected in (
        (node.get_publisher_names_and_types_by_node("grounding", "/shared"), allowed("topic", publish="ALLOW")),
        (node.get_subscriber_names_and_types_by_node("grounding", "/shared"), allowed("topic", subscribe="ALLOW")),
        (node.get_service_names_and_types_by_node("grounding", "/shared"), allowed("service", reply="ALLOW")),
    ):
        names = {name if name.startswith("/shared/") else f"/shared{name}" for name, _ in found if "/_action/" not in name}
        assert names <= expected, names - expected
    assert allowed("action", execute="ALLOW") == {"/shared/grounding/ground"}


def test_foxglove_shows_topics_that_there_are(shared_bench):
    layout = json.loads((ROOT / "foxglove" / "grounding.json").read_text())
    shown = set(re.findall(r'"(/grounding/\w+)', json.dumps(layout)))
    published = {topic.replace("/shared", "") for topic, direction, _ in running(shared_bench.client, "/shared/grounding")}
    assert shown and shown <= published
    panels = set(re.findall(r'"(\w+!\w+)"', json.dumps(layout["layout"])))
    assert panels == set(layout["configById"])
