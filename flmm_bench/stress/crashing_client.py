"""A client that crashes while its goal runs. The stress test runs it as a process."""

from __future__ import annotations

import os
from typing import Any

import rclpy
from rclpy.action import ActionClient

from flmm_ros.action import Ground


def main() -> None:
    """Exit without any shutdown: with status 3 once the goal was accepted, with 4 if there was no response in 10 s."""
    rclpy.init()
    node = rclpy.create_node("crashing_client")
    client: Any = ActionClient(node, Ground, "/grounding/ground")
    if not client.wait_for_server(10.0):
        os._exit(4)
    sent = client.send_goal_async(Ground.Goal(text="what is on the table?"))
    rclpy.spin_until_future_complete(node, sent, timeout_sec=10.0)
    os._exit(3 if sent.done() else 4)


if __name__ == "__main__":
    main()
