"""A simulated robot camera over a table: images, depth and camera info of one scene.

The parameter ``seed`` chooses the scene and may change while the node runs. Images that are stamped after the change was
accepted show the new scene.
"""

from __future__ import annotations

from rclpy.time import Time
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header

from flmm_core.common.plain_text import one_line
from flmm_core.config import Tunable
from flmm_ros import parameters, qos
from flmm_ros.conversions.images import image_message
from flmm_ros.spinning import RunnableNode
from flmm_sim.renderer import TabletopRenderer
from flmm_sim.scene import Scene

CAMERA_TUNABLES = (
    Tunable("seed", int, 0, "Seed of the scene that the camera shows.", minimum=0, maximum=2**32 - 1),
    Tunable("rate", float, 5.0, "Images per second.", unit="Hz", minimum=0.1, maximum=60.0),
    Tunable("width", int, 320, "Width of the images.", unit="pixels", minimum=32, maximum=4096),
    Tunable("height", int, 240, "Height of the images.", unit="pixels", minimum=32, maximum=4096),
    Tunable("frame_id", str, "camera_optical_frame", "Frame of the images: z forward, x right, y down (REP 103)."),
)


class CameraNode(RunnableNode):
    """Publishes images, depth and camera info of a random table."""

    def __init__(self) -> None:
        super().__init__("camera")
        parameters.declare(self, CAMERA_TUNABLES, frozenset({"seed"}))
        self._renderer = TabletopRenderer(parameters.value(self, "height"), parameters.value(self, "width"))
        self._shown: tuple[int, Scene] | None = None
        """Seed and scene of the last image."""
        self._images = qos.create_publisher(self, Image, "~/image", qos.camera_output())
        self._depths = qos.create_publisher(self, Image, "~/depth", qos.camera_output())
        self._infos = qos.create_publisher(self, CameraInfo, "~/camera_info", qos.camera_output())
        self._timer = self.create_timer(1.0 / parameters.value(self, "rate", float), self._on_timer)

    def close(self, timeout: float) -> None:
        """Free the OpenGL context."""
        self.destroy_timer(self._timer)
        self._renderer.close()

    def _on_timer(self) -> None:
        try:
            scene = self._scene(parameters.value(self, "seed"))
            self._publish(scene, self.get_clock().now())
        except Exception as error:
            self.get_logger().error(f"no image: {one_line(error)}")

    def _scene(self, seed: int) -> Scene:
        if self._shown is None or self._shown[0] != seed:
            self._shown = (seed, self._renderer.sample(seed))
            names = ", ".join(item.name for item in self._shown[1].objects)
            self.get_logger().info(f"seed {seed}: {names}")
        return self._shown[1]

    def _publish(self, scene: Scene, now: Time) -> None:
        header = Header(stamp=now.to_msg(), frame_id=parameters.value(self, "frame_id"))
        self._images.publish(image_message(scene.image, "rgb8", header))
        self._depths.publish(image_message(scene.depth, "32FC1", header))
        self._infos.publish(_camera_info(scene, header))


def _camera_info(scene: Scene, header: Header) -> CameraInfo:
    """An ideal pinhole camera: no distortion, nothing to rectify."""
    height, width = scene.image.shape[:2]
    k = scene.intrinsics
    return CameraInfo(
        header=header,
        height=height,
        width=width,
        distortion_model="plumb_bob",
        d=[0.0] * 5,
        k=k.ravel().tolist(),
        r=[1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0],
        p=[k[0, 0], 0.0, k[0, 2], 0.0, 0.0, k[1, 1], k[1, 2], 0.0, 0.0, 0.0, 1.0, 0.0],
    )
