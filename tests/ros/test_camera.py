"""The simulated camera over a real graph."""

import numpy as np
import pytest
from rclpy.parameter import Parameter
from rclpy.parameter_client import AsyncParameterClient
from rclpy.qos import QoSProfile
from sensor_msgs.msg import CameraInfo, Image

from flmm_ros.client import AskClient


@pytest.fixture(scope="module")
def renderer(open_renderer):
    with open_renderer(96, 128) as opened:
        yield opened


@pytest.fixture(scope="module")
def camera(processes, renderer):
    parameters = ["seed:=3", "rate:=10", "width:=128", "height:=96", "frame_id:=eye"]
    arguments = ["--ros-args", "-r", "__ns:=/sim"]
    for parameter in parameters:
        arguments += ["-p", parameter]
    processes.start("camera", "flmm_ros.camera_node", arguments)
    with AskClient() as client:
        received = {"image": [], "depth": [], "camera_info": []}
        for topic, kind in (("image", Image), ("depth", Image), ("camera_info", CameraInfo)):
            client.node.create_subscription(kind, f"/sim/camera/{topic}", received[topic].append, QoSProfile(depth=5))
        client.wait_until(lambda: all(received.values()), 60.0, "the camera sent nothing")
        yield client, received


def pixels(message, dtype, channels):
    return np.frombuffer(message.data, dtype).reshape(message.height, message.width, channels)


def set_seed(client, value):
    parameters = AsyncParameterClient(client.node, "/sim/camera")
    client.wait_until(parameters.services_are_ready, 20.0, "no parameter services")
    future = parameters.set_parameters([Parameter("seed", value=value)])
    result = client.wait_until(lambda: future.result() if future.done() else None, 20.0, "no result").results[0]
    now = client.node.get_clock().now().to_msg()
    return result, (now.sec, now.nanosec)


def test_image_depth_and_camera_info_belong_together(camera, renderer):
    client, received = camera
    for messages in received.values():
        messages.clear()

    def complete():
        stamps = [{(m.header.stamp.sec, m.header.stamp.nanosec) for m in messages} for messages in received.values()]
        return set.intersection(*stamps) or None

    (sec, nanosec) = client.wait_until(complete, 20.0, "nothing with the same stamp").pop()
    image, depth, info = (
        next(m for m in messages if (m.header.stamp.sec, m.header.stamp.nanosec) == (sec, nanosec))
        for messages in received.values()
    )
    scene = renderer.sample(3)
    assert (image.encoding, depth.encoding) == ("rgb8", "32FC1")
    assert image.header.frame_id == depth.header.frame_id == info.header.frame_id == "eye"
    assert np.abs(pixels(image, np.uint8, 3).astype(int) - scene.image).mean() < 1.0
    assert np.allclose(pixels(depth, np.float32, 1)[..., 0], scene.depth, atol=0.01)
    assert (info.height, info.width) == (96, 128)
    assert np.allclose(np.reshape(info.k, (3, 3)), scene.intrinsics)
    assert np.allclose(np.reshape(info.p, (3, 4))[:, :3], scene.intrinsics)


def test_images_stamped_after_the_change_show_the_new_scene(camera, renderer):
    client, received = camera
    result, changed = set_seed(client, 4)
    assert result.successful
    newer = client.wait_until(
        lambda: next((m for m in received["image"] if (m.header.stamp.sec, m.header.stamp.nanosec) > changed), None),
        20.0,
        "no newer image",
    )
    assert np.abs(pixels(newer, np.uint8, 3).astype(int) - renderer.sample(4).image).mean() < 1.0


@pytest.mark.parametrize("seed", [-1, 2**32, "three"])
def test_wrong_seeds_are_refused(camera, seed):
    client, _ = camera
    result, _ = set_seed(client, seed)
    assert not result.successful and "seed" in result.reason
