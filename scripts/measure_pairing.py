"""Measures the cost of depth for an image on its way to the model: reading, pairing by stamp, locating objects.

Images with and without depth take turns in one process, so that the ratios do not depend on the load of the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import rclpy
from rclpy.node import Node
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header

from flmm_bench.machine import machine
from flmm_ros import parameters
from flmm_ros.conversions import image_message
from flmm_ros.image_buffer import ImageBuffer

SIZES = ((480, 640), (1080, 1920))


def measure(node: Node, height: int, width: int, rounds: int) -> dict[str, float]:
    """Medians of the times for one image in milliseconds, and the ratio with depth to without.

    Args:
        node: whose parameters and clock are used.
        height: of the images, pixels.
        width: of the images, pixels.
        rounds: images of either kind.
    """
    image = image_message(np.zeros((height, width, 3), np.uint8), "rgb8", Header())
    depth = image_message(np.ones((height, width), np.float32), "32FC1", Header())
    info = serialize_message(
        CameraInfo(height=height, width=width, k=[500.0, 0.0, width / 2, 0.0, 500.0, height / 2, 0.0, 0.0, 1.0])
    )
    mask = np.zeros((height, width), bool)
    mask[height // 3 : height // 2, width // 3 : width // 2] = True
    ways = {name: ImageBuffer(node) for name in ("without", "with")}
    spent: dict[str, list[float]] = {name: [] for name in ("without", "with", "received", "located")}

    def timed(name: str, act: Callable[[], object]) -> object:
        began = time.perf_counter()
        found = act()
        spent[name].append(1000 * (time.perf_counter() - began))
        return found

    for _ in range(rounds):
        header = Header(stamp=node.get_clock().now().to_msg(), frame_id="camera")
        image.header = depth.header = header
        messages = serialize_message(image), serialize_message(depth)
        for name, images in ways.items():
            images.put(messages[0])
            if name == "with":
                timed("received", lambda b=images, m=messages: (b.put_depth(m[1]), b.put_info(info)))
            newest = timed(name, lambda b=images: b.newest())
        timed("located", lambda n=newest: n.source.view.locate(mask))
    medians = {name: statistics.median(values) for name, values in spent.items()}
    return {name: round(value, 3) for name, value in medians.items()} | {
        "ratio": round((medians["with"] + medians["received"]) / medians["without"], 2)
    }


def main() -> None:
    """Measure, print, and write what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="images of either kind (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    args = parser.parse_args()
    rclpy.init(args=[])
    node = rclpy.create_node("pairing")
    parameters.declare_grounding(node, lambda: "")
    found = {f"{width}x{height}": measure(node, height, width, args.rounds) for height, width in SIZES}
    command = f"python scripts/measure_pairing.py --rounds {args.rounds}" + (f" --json {args.json}" if args.json else "")
    record = {"command": command, "machine": machine(), "milliseconds": found}
    print(json.dumps(record, indent=1))
    if args.json:
        args.json.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
