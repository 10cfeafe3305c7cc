"""Measures which share of a camera's images reaches a reader such as the grounding node, over ROS on one machine.

Camera and reader are processes of their own. The camera publishes images with their depth; both run in turn with the default
settings of Fast DDS and with those of flmm_ros/fastdds.xml. The reader has the quality of service of the node: best effort,
only the newest message.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import rclpy
from rclpy.executors import SingleThreadedExecutor
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from flmm_bench.machine import machine
from flmm_ros import qos
from flmm_ros.conversions import image_message
from flmm_ros.local_graph import local_graph
from flmm_ros.middleware import LARGE_IMAGES, PROFILES_VARIABLE

CAMERAS = ((240, 320, 5.0), (480, 640, 30.0), (720, 1280, 30.0), (1080, 1920, 15.0), (2160, 3840, 30.0))
"""Height and width in pixels, and images a second."""
TOPICS = ("image", "depth")
DISCOVERY = 20.0
"""Seconds for camera and reader to discover each other."""


def send(height: int, width: int, rate: float, count: int) -> None:
    """Publish images, each followed by its depth, once both topics have a subscriber."""
    rclpy.init(args=[])
    node = rclpy.create_node("delivery_camera")
    publishers = [node.create_publisher(Image, topic, qos.camera_output()) for topic in TOPICS]
    messages = [
        image_message(np.zeros((height, width, 3), np.uint8), "rgb8", Header()),
        image_message(np.ones((height, width), np.float32), "32FC1", Header()),
    ]
    deadline = time.monotonic() + DISCOVERY
    while not all(publisher.get_subscription_count() for publisher in publishers):
        if time.monotonic() > deadline:
            raise RuntimeError("the images have no subscriber")
        time.sleep(0.05)
    time.sleep(0.5)  # the subscriber must have discovered the publishers, too
    due = time.monotonic()
    for _ in range(count):
        for publisher, message in zip(publishers, messages, strict=True):
            publisher.publish(message)
        due += 1 / rate
        time.sleep(max(0.0, due - time.monotonic()))
    time.sleep(0.5)
    node.destroy_node()
    rclpy.shutdown()


def receive(height: int, width: int, rate: float, count: int) -> dict[str, float]:
    """Shares of images and of depth images that reach a subscriber; the camera runs in the environment of this process.

    Args:
        height: of the images, pixels.
        width: of the images, pixels.
        rate: images a second.
        count: images of either kind that are sent.
    """
    got: Counter[str] = Counter()

    def note(topic: str, message: bytes) -> None:
        got[topic] += 1

    context = rclpy.Context()
    rclpy.init(context=context, args=[])
    node = rclpy.create_node("delivery_reader", context=context)
    for topic in TOPICS:
        node.create_subscription(Image, topic, partial(note, topic), qos.camera(), raw=True)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    command = [sys.executable, __file__, "--send", *map(str, (height, width, rate, count))]
    with subprocess.Popen(command) as camera:
        while camera.poll() is None:
            executor.spin_once(timeout_sec=0.1)
    executor.shutdown()
    node.destroy_node()
    rclpy.shutdown(context=context)
    if camera.returncode:
        raise RuntimeError(f"the camera ended with status {camera.returncode}")
    return {topic: round(got[topic] / count, 3) for topic in TOPICS}


def measured(settings: dict[str, str], *camera: float) -> dict[str, float]:
    """:func:`receive` in a process of its own, because Fast DDS reads its settings once for each process.

    Args:
        settings: environment variables of reader and camera.
        camera: height, width, rate and count.
    """
    command = [sys.executable, __file__, "--receive", *map(str, camera)]
    run = subprocess.run(command, env={**os.environ, **settings}, check=True, stdout=subprocess.PIPE, text=True)
    shares: dict[str, float] = json.loads(run.stdout)
    return shares


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=150, help="images of either kind for each figure (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    for part in ("--send", "--receive"):
        parser.add_argument(part, nargs=4, metavar=("HEIGHT", "WIDTH", "RATE", "COUNT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.send or args.receive:
        height, width, rate, count = args.send or args.receive
        camera = int(height), int(width), float(rate), int(count)
        if args.send:
            send(*camera)
        else:
            print(json.dumps(receive(*camera)))
        return
    os.environ.pop(PROFILES_VARIABLE, None)
    os.environ.update(local_graph())
    ways = {"default": {}, "file": {PROFILES_VARIABLE: str(LARGE_IMAGES)}}
    figures = [
        {"height": height, "width": width, "rate": rate}
        | {name: measured(settings, height, width, rate, args.count) for name, settings in ways.items()}
        for height, width, rate in CAMERAS
    ]
    command = f"python scripts/measure_delivery.py --count {args.count}" + (f" --json {args.json}" if args.json else "")
    record = {"command": command, "machine": machine(), "cameras": figures}
    print(json.dumps(record, indent=1))
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
