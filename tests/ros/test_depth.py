"""Depth beside the images: where things are, and what is said when depth and image do not fit."""

from pathlib import Path

import numpy as np
import pytest
from bench import IMAGE, Bench, image_of
from conftest import SCRIPTED
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, Image, PointCloud2

from flmm_ros.client import AskClient
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
        (
            {"pixels": np.full_like(METRES, np.nan)},
            "too little depth: expected at least 12 pixels of the mask with one, got 0 of",
        ),
    ],
    ids=["time", "frame", "size", "encoding", "step", "info", "focal", "nan", "holes"],
)
def test_depth_that_does_not_fit_costs_no_mask(camera, changes, reason):
    location = camera.locate(**changes)
    assert not location.valid and location.reason.startswith(reason), location.reason


def test_an_image_of_the_camera_is_found_again(camera):
    assert camera.locate().valid


# --- another frame --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def framed(log_dir):
    """A node with tf2, or what stands in for it."""
    environment = {"PYTHONPATH": str(Path(__file__).parent / "fake_tf2")}
    with NodeProcesses(log_dir, environment) as processes, AskClient("/framed/grounding") as client:
        processes.start("framed", SCRIPTED, ["--ros-args", "-r", "__ns:=/framed", "-p", "target_frame:=base"])
        bench = Bench(client, "/framed/grounding")
        bench.connect(processes.check)
        yield Camera(bench)


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


def test_without_tf2_the_reason_is_said(camera):
    assert camera.bench.set_parameter("target_frame", "base").successful
    location = camera.locate()
    assert camera.bench.set_parameter("target_frame", "").successful
    assert (location.valid, location.reason) == (False, "target_frame: expected tf2_ros, which is not installed")
