"""Depth beside the images: where things are, and what is said when depth and image do not fit."""

import struct
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from bench import IMAGE, Bench, image_of
from conftest import SCRIPTED
from geometry_msgs.msg import Quaternion, TransformStamped, Vector3
from geometry_msgs.msg import Transform as TransformMsg
from rclpy.qos import QoSProfile
from rclpy.serialization import serialize_message
from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, CompressedImage, Image, PointCloud2
from std_msgs.msg import Header

from flmm_core.serving.requests import Mode, Reply, Status
from flmm_core.spatial.location import NoDepthError
from flmm_core.types import GroundedAnswer as Answer
from flmm_core.types import GroundedPhrase, StageSeconds
from flmm_ros import depth_matcher
from flmm_ros.client import AskClient
from flmm_ros.commands import Command, reply_message
from flmm_ros.depth_matcher import DepthMatcher, View, is_rectified
from flmm_ros.frames import Frames, Lookup, Transform
from flmm_ros.image_buffer import Source
from flmm_ros.msg import GroundedAnswer
from flmm_ros.node_processes import NodeProcesses

HEIGHT, WIDTH = IMAGE.shape[:2]
K = [20.0, 0.0, 16.0, 0.0, 20.0, 12.0, 0.0, 0.0, 1.0]
METRES = np.full((HEIGHT, WIDTH), 0.5, np.float32)


class Camera:
    """Publishes what lies beside an image."""

    def __init__(self, bench):
        self.bench = bench
        node, space = bench.client.node, bench.name.rsplit("/", 1)[0]
        self.depths = node.create_publisher(Image, f"{space}/depth", QoSProfile(depth=5))
        self.infos = node.create_publisher(CameraInfo, f"{space}/camera_info", QoSProfile(depth=5))
        self.clouds = []
        node.create_subscription(PointCloud2, f"{bench.name}/objects", self.clouds.append, QoSProfile(depth=5))
        bench.until(lambda: self.depths.get_subscription_count() and self.infos.get_subscription_count())
        bench.client.wait_for_node(15.0)

    def locate(self, pixels=METRES, encoding="32FC1", *, frame=None, late=0, size=(HEIGHT, WIDTH), k=K, **changed):
        """Location of the one phrase, over the left half of the image."""
        header = self.bench.show()
        depth = image_of(pixels, encoding, **changed)
        depth.header.stamp.sec, depth.header.stamp.nanosec = header.stamp.sec + late, header.stamp.nanosec
        depth.header.frame_id = header.frame_id if frame is None else frame
        for _ in range(3):  # best effort may lose it
            self.infos.publish(CameraInfo(header=header, height=size[0], width=size[1], k=k))
            self.depths.publish(depth)
            self.bench.client.spin(0.3)
        reply = self.bench.ask("hello")
        assert reply.status == GroundedAnswer.STATUS_ANSWERED, reply.reason
        assert len(reply.phrases) == 1 and reply.phrases[0].mask.width == WIDTH // 2
        return reply.phrases[0].location


@pytest.fixture(scope="module")
def camera(start_scripted):
    return Camera(start_scripted("deep"))


def test_without_depth_the_reason_is_said(camera):
    camera.bench.show()
    location = camera.bench.ask("hello").phrases[0].location
    assert (location.valid, location.reason) == (False, "no depth image has arrived yet")


@pytest.mark.parametrize(
    "pixels, encoding",
    [(METRES, "32FC1"), ((METRES * 1000).astype(np.uint16), "16UC1"), ((METRES * 1000).astype(np.uint16), "mono16")],
    ids=["metres", "millimetres", "mono16"],
)
def test_a_thing_is_where_depth_says(camera, pixels, encoding):
    camera.clouds.clear()
    location = camera.locate(pixels, encoding)
    assert (location.valid, location.reason, location.depth_fraction) == (True, "", 1.0)
    # Of the half 0 <= x < 16 the two pixels at its inner edge are left out; at the image's border it has no edge.
    assert location.centroid.x == pytest.approx((6.5 - 16) / 20 * 0.5, abs=1e-4)
    assert location.centroid.y == pytest.approx(-0.5 / 20 * 0.5, abs=1e-4)
    assert location.centroid.z == pytest.approx(0.5, abs=1e-4)
    assert location.box.position.z == pytest.approx(0.5, abs=1e-4)
    turn = location.box.orientation
    assert turn.x**2 + turn.y**2 + turn.z**2 + turn.w**2 == pytest.approx(1.0)
    camera.bench.until(lambda: any(cloud.width for cloud in camera.clouds))
    cloud = next(cloud for cloud in camera.clouds if cloud.width)
    points = np.frombuffer(cloud.data, [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("label", "<u4")])
    assert len(points) == cloud.width == 14 * 24 and set(points["label"]) == {1}
    assert points["z"] == pytest.approx(0.5, abs=1e-4) and cloud.header.frame_id == "camera"


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"late": 5}, "no depth of the image's time: expected one within 0.02 s (depth_tolerance), the nearest is"),
        ({"frame": "depth_frame"}, "the depth is in another frame: expected 'camera' as the image, got 'depth_frame'"),
        ({"pixels": METRES[::2, ::2].copy()}, "the depth has another size than the image: expected 32x24, got 16x12"),
        ({"encoding": "64FC1"}, "unsupported depth encoding '64FC1': expected 32FC1 (metres) or 16UC1 (millimetres)"),
        ({"step": 7}, "wrong step: expected at least 128 for width 32 in 32FC1, got 7"),
        ({"size": (48, 64)}, "the camera info is of another size than the image: expected 32x24, got 64x48"),
        ({"k": [0.0] * 9}, "the camera info has no focal length: expected fx, fy > 0, got 0, 0"),
        ({"k": [float("nan")] * 9}, "the camera info has no focal length"),
        ({"k": [1e-306, *K[1:]]}, "the focal length does not fit the image: expected fx, fy of 1.6 to 32000 pixels for 32x24"),
        (
            {"pixels": np.full_like(METRES, np.nan)},
            "too little depth: expected at least 12 pixels of the mask with one, got 0 of",
        ),
    ],
    ids=["time", "frame", "size", "encoding", "step", "info", "focal", "nan", "tiny", "holes"],
)
def test_depth_that_does_not_fit_costs_no_mask(camera, changes, reason):
    location = camera.locate(**changes)
    assert not location.valid and location.reason.startswith(reason), location.reason


def test_an_image_of_the_camera_is_found_again(camera):
    assert camera.locate().valid


# --- without a node -------------------------------------------------------------------------------------------------------


def header(stamp=0.0):
    found = Header(frame_id="camera")
    found.stamp.sec, found.stamp.nanosec = int(stamp), round(stamp % 1 * 1e9)
    return found


def depth_at(stamp, metres=0.5):
    message = image_of(np.full((HEIGHT, WIDTH), metres, np.float32), "32FC1")
    message.header = header(stamp)
    return serialize_message(message)


def matcher(depths=(), **info):
    found = DepthMatcher()
    for stamp, metres in depths:
        found.put_depth(depth_at(stamp, metres))
    found.put_info(serialize_message(CameraInfo(**{"height": HEIGHT, "width": WIDTH, "k": K, **info})))
    return found


def view_of(space, stamp=0.0, *, rectified=False):
    return space.view(header(stamp), HEIGHT, WIDTH, tolerance=0.02, max_pixels=10_000, rectified=rectified)


@pytest.mark.parametrize("stamp", [0.0, 7.0])
def test_of_equal_stamps_the_newest_depth_is_taken(stamp):
    """A camera that sets no stamps, or one for several images."""
    view = view_of(matcher([(stamp, metres) for metres in (1.0, 2.0, 3.0)]), stamp)
    assert view.depth is not None and view.depth[0, 0] == 3.0


def test_depths_that_are_discarded_while_one_is_waited_for():
    """The node is deactivated meanwhile."""
    space = matcher([(1.0, 0.5)])
    threading.Timer(0.05, space.clear).start()
    assert view_of(space, 5.0).reason == "no depth image has arrived yet"


def test_whatever_fails_in_locating_costs_the_location_only(monkeypatch):
    def fail(*_):
        raise np.linalg.LinAlgError("SVD did not\nconverge")

    monkeypatch.setattr(depth_matcher, "locate", fail)
    phrase = GroundedPhrase("it", 0, 2, torch.ones(HEIGHT, WIDTH, dtype=torch.bool), (0, 0, WIDTH, HEIGHT), 0.9)
    answer = Answer("it", (phrase,), HEIGHT, WIDTH, StageSeconds())
    source = Source(header(1.0), View(METRES, np.reshape(K, (3, 3))))
    reply = Reply(Status.ANSWERED, answer=answer, source=source)
    message, located = reply_message(Command(1, Mode.CHAT, "what"), reply, Time(seconds=1), max_text=100)
    assert message.status == GroundedAnswer.STATUS_ANSWERED and message.phrases[0].mask.width == WIDTH and not located
    assert message.phrases[0].location.reason == "the location cannot be computed: SVD did not converge"


P = [40.0, 0.0, 15.0, 0.0, 0.0, 40.0, 11.0, 0.0, 0.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize(
    ("topic", "rectified"),
    [
        ("/camera/image_rect", True), ("/camera/image_rect_color", True), ("/zed/rgb/color/rect/image", True),
        ("/rectified/image", True), ("/camera/image_raw", False), ("/image", False), ("/direct/image", False),
        ("/camera/image_unrectified", False), ("/direction_rectangle/image", False),
    ],
)  # fmt: skip
def test_rectified_images_are_known_by_their_topic(topic, rectified):
    assert is_rectified(topic) == rectified


def test_the_matrix_is_that_of_the_image():
    """K and d describe what the camera sends, P what image_proc makes of it."""
    lens = {"k": K, "p": P, "distortion_model": "plumb_bob", "d": [-0.2, 0.05, 0.0, 0.0, 0.0]}
    depths = [(1.0, 0.5)]
    raw = view_of(matcher(depths, **lens), 1.0)
    assert raw.intrinsics.ravel().tolist() == K and raw.distortion.coefficients.tolist() == lens["d"]
    rectified = view_of(matcher(depths, **lens), 1.0, rectified=True)
    assert (rectified.intrinsics[0].tolist(), rectified.distortion) == ([40.0, 0.0, 15.0], None)
    straight = view_of(matcher(depths, **{**lens, "d": [0.0] * 5}), 1.0)
    assert straight.intrinsics.ravel().tolist() == K and straight.distortion is None
    assert view_of(matcher(depths, p=P, k=[0.0] * 9), 1.0).intrinsics[0, 0] == 40.0
    assert view_of(matcher(depths), 1.0, rectified=True).intrinsics[0, 0] == 20.0
    many = view_of(matcher(depths, k=K, distortion_model="rational_polynomial", d=[0.1] * 8 + [0.0] * 6), 1.0)
    assert many.distortion.coefficients.tolist() == [0.1] * 8
    corner = np.zeros((HEIGHT, WIDTH), bool)
    corner[:8, :8] = True
    assert np.abs(raw.locate(corner).centroid - straight.locate(corner).centroid).max() > 0.01


@pytest.mark.parametrize(
    ("info", "reason"),
    [
        ({"distortion_model": "mirror", "d": [0.1]}, "unsupported distortion model: expected one of plumb_bob, "),
        ({"distortion_model": "plumb_bob", "d": [0.1] * 14}, "distortion of model plumb_bob: expected 4 or 5 finite"),
        ({"distortion_model": "plumb_bob", "d": [float("nan")] * 5}, "distortion of model plumb_bob: expected 4 or 5 finite"),
    ],
)
def test_a_distortion_that_is_not_known_is_the_reason(info, reason):
    assert view_of(matcher([(1.0, 0.5)], **info), 1.0).reason.startswith(reason)


def test_compressed_depth_is_read():
    metres = (METRES * 1000).astype(np.uint16)
    data = struct.pack("<iff", 0, 0.0, 0.0) + cv2.imencode(".png", metres)[1].tobytes()
    message = CompressedImage(header=header(1.0), format="16UC1; compressedDepth png", data=data)
    space = matcher()
    space.put_depth(serialize_message(message), CompressedImage)
    assert view_of(space, 1.0).depth[0, 0] == pytest.approx(0.5)
    message.format = "16UC1; compressedDepth zstd"
    space.put_depth(serialize_message(message), CompressedImage)
    assert view_of(space, 1.0).reason.startswith(
        "unsupported compressed depth '16UC1; compressedDepth zstd': expected 16UC1 or"
    )


# --- another frame --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def framed(log_dir):
    """A node with what stands in for tf2."""
    environment = {"PYTHONPATH": str(Path(__file__).parent / "fake_tf2")}
    with NodeProcesses(log_dir, environment) as processes, AskClient("/framed/grounding") as client:
        processes.start("framed", SCRIPTED, ["--ros-args", "-r", "__ns:=/framed", "-p", "target_frame:=base"])
        bench = Bench(client, "/framed/grounding")
        bench.connect(processes.check)
        yield Camera(bench)


def test_the_first_answer_is_in_the_frame_that_is_wanted(framed):
    """TF is listened to from the activation on, not from the first answer."""
    location = framed.locate()
    assert (location.frame_id, location.reason) == ("base", "")


def test_locations_are_in_the_frame_that_is_wanted(framed, camera):
    expected, found = camera.locate(), framed.locate()
    assert (expected.frame_id, found.frame_id) == ("camera", "base")
    at, moved = expected.centroid, found.centroid
    assert (moved.x, moved.y, moved.z) == pytest.approx((1 - at.y, 2 + at.x, 3 + at.z), abs=1e-5)
    assert (found.extent.x, found.extent.y) == pytest.approx((expected.extent.y, expected.extent.x), abs=1e-5)
    framed.bench.until(lambda: any(cloud.width for cloud in framed.clouds))
    cloud = next(cloud for cloud in framed.clouds if cloud.width)
    points = np.frombuffer(cloud.data, [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("label", "<u4")])
    assert cloud.header.frame_id == "base" and points["z"] == pytest.approx(3.5, abs=1e-4)


def test_a_transform_that_is_not_known_is_said(framed):
    assert framed.bench.set_parameter("target_frame", "mars").successful
    location = framed.locate()
    reason = "no transform from 'camera' to 'mars' (target_frame) at the image's time: \"mars\" passed to lookupTransform"
    assert not location.valid and location.reason.startswith(reason), location.reason
    assert framed.bench.set_parameter("target_frame", "camera").successful
    assert framed.locate().frame_id == "camera", "the image's own frame needs no transform"
    assert framed.bench.set_parameter("target_frame", "base").successful


def test_a_transform_that_comes_later_than_the_image_is_waited_for(framed):
    assert framed.bench.set_parameter("target_frame", "late").successful
    found = framed.locate()
    assert framed.bench.set_parameter("transform_timeout", 0.0).successful
    missing = framed.locate()
    assert framed.bench.set_parameter("transform_timeout", 0.5).successful
    assert framed.bench.set_parameter("target_frame", "base").successful
    assert (found.frame_id, found.reason) == ("late", "")
    assert not missing.valid and missing.reason.startswith("no transform from 'camera' to 'late'")


class Tf:
    """What it knows of is forgotten after ten seconds; the test does not wait so long."""

    def __init__(self, known):
        self.known, self.timeouts = known, []

    def transform(self, header, frame_id, timeout):
        self.timeouts.append(timeout)
        if not self.known:
            raise NoDepthError("no transform")
        return Transform(frame_id, np.eye(3), np.zeros(3))


def test_a_transform_is_kept_while_the_model_works():
    tf = Tf(known=True)
    view = View(METRES, np.reshape(K, (3, 3)), lookup=Lookup(tf, header(1.0), "base", timeout=lambda: 0.5))
    tf.known = False
    assert view.settled().transform.frame_id == "base" and tf.timeouts == [0.0]
    late = View(METRES, np.reshape(K, (3, 3)), lookup=Lookup(tf, header(1.0), "base", timeout=lambda: 0.5))
    assert late.settled().reason == "no transform" and tf.timeouts == [0.0, 0.0, 0.5]


@pytest.mark.parametrize("w", [0.0, 0.9, float("nan")])
def test_a_transform_that_is_none_is_refused(w):
    class Buffer:
        def lookup_transform(self, *_):
            return TransformStamped(transform=TransformMsg(translation=Vector3(), rotation=Quaternion(w=w)))

    frames = object.__new__(Frames)
    frames._buffer = Buffer()
    with pytest.raises(NoDepthError, match="expected finite numbers and a unit quaternion"):
        frames.transform(header(1.0), "base", 0.0)


def test_without_tf2_the_reason_is_said(camera):
    assert camera.bench.set_parameter("target_frame", "base").successful
    location = camera.locate()
    assert camera.bench.set_parameter("target_frame", "").successful
    assert (location.valid, location.reason) == (False, "target_frame: expected tf2_ros, which is not installed")
