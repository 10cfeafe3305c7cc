"""The grounding node with a timer that measures how late its executor is. The stress test runs it as a process."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

from flmm_ros.middleware import make_room_for_images
from flmm_ros.signals import leave_on_signals

LATENESS = "soak/lateness"
PERIOD = 0.01
"""Seconds between two calls of the timer."""


def main(args: Sequence[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; once a second it publishes how late each call of the timer was.

    The values on ``soak/lateness`` are milliseconds: positive where a command was running, negative elsewhere.
    """
    leave_on_signals()
    make_room_for_images()
    from rclpy.clock import Clock, ClockType
    from std_msgs.msg import Float32MultiArray

    from flmm_ros import qos
    from flmm_ros.grounding import GroundingNode
    from flmm_ros.spinning import run_node

    class ProbedNode(GroundingNode):
        def __init__(self) -> None:
            super().__init__()
            self._late: list[float] = []
            self._expected = time.monotonic() + PERIOD
            self._latenesses = self.create_publisher(Float32MultiArray, LATENESS, qos.commands())
            self.create_timer(PERIOD, self._on_probe, clock=Clock(clock_type=ClockType.STEADY_TIME))

        def _on_probe(self) -> None:
            now = time.monotonic()
            late = 1000 * max(1e-6, now - self._expected)
            self._late.append(late if self._server.busy else -late)
            # One late call does not make the next ones late: they are expected a period after this one.
            self._expected = max(self._expected + PERIOD, now)
            if len(self._late) >= 1 / PERIOD:
                self._latenesses.publish(Float32MultiArray(data=self._late))
                self._late.clear()

    return run_node(ProbedNode, args)


if __name__ == "__main__":
    sys.exit(main())
