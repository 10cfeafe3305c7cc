"""Whether images arrive, and what is said when they do not; without a model and without a node's process."""

import os
import sys
import time
from threading import Timer
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
import rclpy
from bench import IMAGE, image_of
from rclpy.clock import ClockType
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from rclpy.serialization import serialize_message
from rclpy.time import Time
from sensor_msgs.msg import CompressedImage, Image

from flmm_core.serving.requests import RefusedError, Status
from flmm_ros import delivery, middleware, parameters
from flmm_ros.delivery import Delivery, transport_hint
from flmm_ros.frames import Frames
from flmm_ros.image_buffer import ImageBuffer
from flmm_ros.middleware import LARGE_IMAGES

SECOND = 10**9


@pytest.fixture(scope="module")
def node():
    context = rclpy.Context()
    rclpy.init(context=context, args=["--ros-args", "-r", "__ns:=/delivery"])
    node = rclpy.create_node("delivery", context=context)
    parameters.declare_grounding(node, lambda: "")
    yield node
    node.destroy_node()
    rclpy.try_shutdown(context=context)


@pytest.fixture
def images(node):
    return ImageBuffer(node)


def message(node, ahead=0.0):
    found = image_of(IMAGE)
    found.header.stamp = rclpy.time.Time(nanoseconds=node.get_clock().now().nanoseconds + round(ahead * SECOND)).to_msg()
    return serialize_message(found)


def refusal(images):
    with pytest.raises(RefusedError) as error:
        images.newest()
    return error.value.status, error.value.reason


def test_rates():
    counted = Delivery()
    assert str(counted.rates(SECOND)) == "0.00 images a second arrive"
    for number in range(4):  # of a camera of 30 Hz; each third image arrives, and two in a row
        counted.image(number * SECOND // 10, SECOND + number * SECOND // 10)
    counted.image(4 * SECOND // 10, SECOND + 3 * SECOND // 10 + SECOND // 30)
    rates = counted.rates(4 * SECOND // 10)
    assert (rates.received, rates.expected) == (pytest.approx(10.0), pytest.approx(10.0, rel=0.01))
    for number in range(13):
        counted.info(number * SECOND // 30)
    assert str(counted.rates(4 * SECOND // 10)) == "10.00 images a second arrive of 30.0 Hz expected"
    assert counted.rates(40 * SECOND).received == pytest.approx(0.1), "the camera has stopped"
    counted.image(5, 5)
    counted.info(5)
    assert counted.rates(10).received == 0.0, "the clock was set back"


def test_rates_of_a_camera_without_infos_or_stamps():
    counted = Delivery()
    for number in (0, 1, 2, 9, 20, 21):
        counted.image(number * SECOND // 30, SECOND + number * SECOND // 30)
    assert counted.rates(21 * SECOND // 30).expected == pytest.approx(30.0)
    counted.clear()
    for number in range(3):
        counted.image(number * SECOND, 0)
    assert counted.rates(2 * SECOND).expected == 0.0


@pytest.mark.parametrize(
    ("middleware", "hint"),
    [
        ("rmw_fastrtps_cpp", f"unless the camera runs with FASTDDS_DEFAULT_PROFILES_FILE={LARGE_IMAGES}"),
        ("rmw_cyclonedds_cpp", "unless the receive buffers of the system hold them: sudo sysctl -w net.core.rmem_max="),
        ("rmw_zenoh_cpp", "try image_transport:=compressed"),
    ],
)
def test_hints_are_about_the_middleware_in_use(monkeypatch, middleware, hint):
    monkeypatch.setattr(delivery, "get_rmw_implementation_identifier", lambda: middleware)
    assert hint in transport_hint()


def test_the_settings_hold_a_4k_image_with_its_depth():
    transport = ElementTree.parse(LARGE_IMAGES).find(".//{*}transport_descriptor")
    image, depth, piece = 2160 * 3840 * 3, 2160 * 3840 * 4, 65_000
    segment, pieces = (int(transport.find(f"{{*}}{name}").text) for name in ("segment_size", "port_queue_capacity"))
    assert image + depth <= segment <= middleware._NEEDED
    assert 2 * (image + depth) / piece <= pieces, "the next image comes while this one is read"


@pytest.mark.parametrize("free", [10**9, 60 * 10**6])
def test_a_machine_with_little_shared_memory_is_told_so(monkeypatch, capsys, free):
    """A container has 64 MB by default."""
    monkeypatch.delenv(middleware.PROFILES_VARIABLE, raising=False)
    monkeypatch.setattr(middleware.shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    middleware.make_room_for_images()
    chosen, said = os.environ.pop(middleware.PROFILES_VARIABLE, None), capsys.readouterr().err
    if free > 10**8:
        assert (chosen, said) == (str(LARGE_IMAGES), "")
    else:
        assert chosen is None and said.startswith(
            "/dev/shm: expected 72 MB free, got 60 MB: large images may be lost; enlarge it"
        )


def test_in_the_first_moments_a_command_waits_for_the_camera(node, images, monkeypatch):
    """Nobody publishes: the camera is not discovered yet."""
    monkeypatch.setattr("flmm_ros.image_buffer._DISCOVERY", 0.6)
    images.start()
    Timer(0.2, lambda: images.put(message(node))).start()
    assert images.newest().pixels.shape == IMAGE.shape
    images.clear()
    images.start()
    began = time.monotonic()
    assert refusal(images) == (Status.NO_IMAGE, "no image has arrived yet: no node publishes /delivery/image")
    assert time.monotonic() - began >= 0.6
    began = time.monotonic()
    refusal(images)
    assert time.monotonic() - began < 0.3, "from then on commands are refused at once"


def test_publishers_of_another_type_are_named(node, images):
    publisher = node.create_publisher(CompressedImage, "image", QoSProfile(depth=1))
    try:
        status, reason = refusal(images)
    finally:
        node.destroy_publisher(publisher)
    assert status == Status.NO_IMAGE and reason.startswith(
        "no image has arrived yet: expected publishers of sensor_msgs/msg/Image on /delivery/image, got "
        "sensor_msgs/msg/CompressedImage (is image_transport right?)"
    )


def test_depth_of_another_type_is_named(node, images):
    images.put(message(node))
    assert images.newest().source.view.reason == "no depth image has arrived yet"
    publisher = node.create_publisher(CompressedImage, "depth", QoSProfile(depth=1))
    try:
        reason = images.newest().source.view.reason
    finally:
        node.destroy_publisher(publisher)
    assert reason == (
        "no depth image has arrived yet: expected publishers of sensor_msgs/msg/Image on /delivery/depth, got "
        "sensor_msgs/msg/CompressedImage (is depth_transport right?)"
    )


def test_an_image_that_is_too_old_says_what_arrives_and_what_helps(node, images):
    node.set_parameters([Parameter("max_image_age", value=0.05)])
    publisher = node.create_publisher(Image, "image", QoSProfile(depth=1))
    try:
        for _ in range(3):
            images.put(message(node))
            time.sleep(0.02)
        for _ in range(30):
            images.put_info(b"")
            time.sleep(0.003)
        status, reason = refusal(images)
        health = images.health()
    finally:
        node.destroy_publisher(publisher)
        node.set_parameters([Parameter("max_image_age", value=5.0)])
    assert status == Status.IMAGE_TOO_OLD
    assert "too old: expected at most 0.05 s (max_image_age), got 0." in reason
    assert " images a second arrive of " in reason and "publishers of /delivery/image exist: 1 (Fast DDS loses large" in reason
    assert 0 < health.received < health.expected and "Fast DDS" in health.trouble and health.skipped == 2


def test_an_old_stamp_is_not_the_middlewares_fault(node, images):
    images.put(message(node, ahead=-60.0))
    status, reason = refusal(images)
    assert status == Status.IMAGE_TOO_OLD and reason.endswith("got 60.0 s")


def test_a_camera_whose_clock_is_ahead_is_warned_about(node, images, monkeypatch):
    said = []
    monkeypatch.setattr(type(node.get_logger()), "warning", lambda _, text, **__: said.append(text))
    images.put(message(node, ahead=0.1))
    assert not said and images.health().ahead == 0.0
    images.put(message(node, ahead=3600.0))
    assert images.health().ahead == pytest.approx(3600.0, abs=1.0)
    assert said[0].startswith("images are stamped 3600.0 s ahead of the node's clock: synchronise")
    images.newest()
    images.put(message(node))
    assert images.health().ahead == 0.0
    for short in (b"", b"\0\1\0\0", b"\0\1\0\0\0\0\0\0\0\0\0"):
        images.put(short)
        assert refusal(images)[0] == Status.BAD_IMAGE


def test_transforms_are_forgotten_when_the_clock_is_set_back(node, monkeypatch):
    """A bag that begins again: TF would refuse what is older than its last ten seconds."""
    cleared = []
    buffer = SimpleNamespace(clear=lambda: cleared.append(True))
    monkeypatch.setitem(sys.modules, "tf2_ros", SimpleNamespace(Buffer=lambda: buffer, TransformListener=lambda *_: None))
    frames, clock = Frames(node), node.get_clock()
    clock._set_ros_time_is_active(True)
    clock.set_ros_time_override(Time(seconds=100, clock_type=ClockType.ROS_TIME))
    cleared.clear()
    for seconds, count in ((101, 0), (100.9, 0), (5, 1), (6, 1)):
        clock.set_ros_time_override(Time(seconds=seconds, clock_type=ClockType.ROS_TIME))
        assert len(cleared) == count, seconds
    clock._set_ros_time_is_active(False)
    del frames
