"""A client for tests: sends images and commands to a grounding node and collects every reply."""

import array
import time
from dataclasses import dataclass, field

import numpy as np
from rclpy.parameter import Parameter
from rclpy.parameter_client import AsyncParameterClient
from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image
from std_msgs.msg import Header, String

from flmm_ros import qos
from flmm_ros.client import AskClient
from flmm_ros.msg import GroundedAnswer

IMAGE = np.full((24, 32, 3), (200, 100, 50), np.uint8)


def image_of(pixels, encoding="rgb8", **changed):
    """A message with consistent fields, except for those in ``changed``."""
    message = Image(encoding=encoding, height=pixels.shape[0], width=pixels.shape[1], step=pixels.strides[0])
    message.data = array.array("B", pixels.tobytes())
    for name, value in changed.items():
        setattr(message, name, value)
    return message


@dataclass
class Bench:
    """Publishers and subscriptions around one node."""

    client: AskClient
    name: str
    image_type: type = Image
    image_topic: str = "image"
    replies: list = field(default_factory=list)
    """On ~/answer: of topics, not of goals."""
    texts: list = field(default_factory=list)
    label_maps: list = field(default_factory=list)

    def __post_init__(self):
        node, namespace = self.client.node, self.name.rsplit("/", 1)[0]
        # Reliable, so that a test's one image arrives; the node's own reader asks for less.
        self.images = node.create_publisher(self.image_type, f"{namespace}/{self.image_topic}", QoSProfile(depth=5))
        self.commands = node.create_publisher(String, f"{namespace}/command", qos.commands())
        self.phrases = node.create_publisher(String, f"{namespace}/phrase", qos.commands())
        node.create_subscription(GroundedAnswer, f"{self.name}/answer", self.replies.append, qos.commands())
        node.create_subscription(String, f"{self.name}/answer_text", self.texts.append, qos.commands())
        node.create_subscription(Image, f"{self.name}/label_mask", self.label_maps.append, qos.images())
        self.parameters = AsyncParameterClient(node, self.name)

    def connect(self, meanwhile):
        self.client.wait_for_node(180.0, meanwhile)
        self.wait_for_readers()
        self.until(self.parameters.services_are_ready)

    def wait_for_readers(self):
        """Until the active node reads what this side publishes."""
        publishers = (self.images, self.commands, self.phrases)
        self.until(lambda: all(publisher.get_subscription_count() > 0 for publisher in publishers))

    def until(self, ready, timeout=15.0):
        return self.client.wait_until(ready, timeout, f"nothing within {timeout} s")

    def show(self, message=None, *, age=0.0, frame="camera"):
        """Publish an image, a good one by default, until replies are about it; returns its header."""
        message = image_of(IMAGE) if message is None else message
        for _ in range(4):  # best effort may lose it
            now = time.time() - age
            message.header = Header(frame_id=frame)
            message.header.stamp.sec, message.header.stamp.nanosec = int(now), int(now % 1 * 1e9)
            self.images.publish(message)
            for _ in range(15):  # a loaded machine delays it
                if self.ask("nothing").header == message.header:
                    return message.header
                self.client.spin(0.1)
        raise AssertionError("the image never arrived")

    def ask(self, text="hello", *, refer=False):
        """The reply to a command that is sent by topic; nobody else may send any by topic meanwhile."""
        self.replies.clear()
        (self.phrases if refer else self.commands).publish(String(data=text))
        self.until(lambda: bool(self.replies), 20.0)
        return self.replies[0]

    def ask_about(self, message, text="hello"):
        """Show an image and ask about it."""
        self.show(message)
        return self.ask(text)

    def still_serves(self):
        """The node answers a good command on a good image."""
        reply = self.ask_about(image_of(IMAGE), "mean")
        assert (reply.status, reply.answer) == (GroundedAnswer.STATUS_ANSWERED, "200 100 50"), reply.reason

    def set_parameter(self, name, value):
        future = self.parameters.set_parameters([Parameter(name, value=value)])
        return self.until(lambda: future.result() if future.done() else None).results[0]
