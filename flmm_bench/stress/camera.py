"""A camera for the stress test: rendered scenes at 30 Hz in two sizes, with drop-outs. Runs as a process."""

from __future__ import annotations

import itertools
import random
import sys
import time
from collections.abc import Sequence

import cv2
import rclpy
from rclpy.executors import ExternalShutdownException
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from flmm_ros import qos
from flmm_ros.conversions import image_message
from flmm_ros.middleware import make_room_for_images
from flmm_sim.renderer import TabletopRenderer
from flmm_sim.scene import Scene

SIZES = ((480, 640), (1080, 1920))
"""Height and width of the images in pixels; the camera alternates between them."""
TURN = 30.0
"""Seconds for which it keeps a size."""
RATE = 30.0
"""Images a second."""
SCENES = 4
"""Different scenes; the camera changes to the next one once a second."""
DROP_OUT = (3.0, 8.0)
"""Shortest and longest drop-out in seconds; there is one in each turn."""


def main(args: Sequence[str] | None = None) -> int:
    """Publish image, depth and camera info until SIGINT."""
    make_room_for_images()
    rclpy.init(args=list(sys.argv if args is None else args))
    node = rclpy.create_node("soak_camera")
    images = node.create_publisher(Image, "image", qos.camera_output())
    depths = node.create_publisher(Image, "depth", qos.camera_output())
    infos = node.create_publisher(CameraInfo, "camera_info", qos.camera_output())
    with TabletopRenderer(*SIZES[0]) as renderer:
        scenes = [renderer.sample(seed) for seed in range(SCENES)]
    chance = random.Random(1)
    try:
        for size in itertools.cycle(SIZES):
            views = [_view(scene, size) for scene in scenes]
            began = time.monotonic()
            drop_out = began + chance.uniform(5.0, TURN - DROP_OUT[1])
            resumed = drop_out + chance.uniform(*DROP_OUT)
            for number in itertools.count():
                now = time.monotonic()
                if now > began + TURN:
                    break
                if not drop_out < now < resumed:
                    image, depth, info = views[number // 30 % SCENES]
                    header = Header(stamp=node.get_clock().now().to_msg(), frame_id="camera_optical_frame")
                    for publisher, message in ((infos, info), (depths, depth), (images, image)):
                        message.header = header
                        publisher.publish(message)
                time.sleep(max(0.0, began + (number + 1) / RATE - time.monotonic()))
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    return 0


def _view(scene: Scene, size: tuple[int, int]) -> tuple[Image, Image, CameraInfo]:
    """Image, depth and camera info of a scene, scaled to ``size`` (height, width)."""
    height, width = size
    scale = height / scene.image.shape[0], width / scene.image.shape[1]
    k = scene.intrinsics.copy()
    k[0] *= scale[1]
    k[1] *= scale[0]
    image = image_message(cv2.resize(scene.image, (width, height)), "rgb8", Header())
    depth = image_message(cv2.resize(scene.depth, (width, height), interpolation=cv2.INTER_NEAREST), "32FC1", Header())
    return image, depth, CameraInfo(height=height, width=width, k=k.ravel().tolist())


if __name__ == "__main__":
    sys.exit(main())
