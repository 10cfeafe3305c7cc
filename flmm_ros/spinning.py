"""Runs a node as a process: signals, exit status, and one clear line when it cannot go on."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import rclpy
from rcl_interfaces.msg import SetParametersResult
from rclpy.executors import SingleThreadedExecutor
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions

from flmm_core.common.plain_text import one_line
from flmm_ros.parameters import ParameterError, unknown
from flmm_ros.signals import stop_on_signals

_PERIOD = 0.1
"""Seconds until the executor looks at signals again."""
# Launch loses patience 5 s after it asked a node to end. A node is to be gone within 3 s, these two and _PERIOD included.
_GRACE = 1.5
"""Seconds in which a node ends what it is doing."""
_LAST_WORDS = 0.3
"""Seconds for which it then still answers what reaches it."""


class RunnableNode(Node):
    """What :func:`run_node` needs of a node."""

    failure: str | None = None
    """Why it cannot go on; None while all is well."""
    ending: threading.Event
    """Set when the process is asked to end: what takes long gives up then."""

    def close(self, timeout: float) -> None:
        """End what it is doing, within ``timeout`` seconds."""

    def leave(self) -> None:
        """Leave the graph."""
        self.destroy_node()

    def set_parameters_atomically(self, parameter_list: list[Parameter[Any]]) -> SetParametersResult:
        """As rclpy does, which all its services use; but a parameter that does not exist is refused by name."""
        for parameter in parameter_list:
            if not self.has_parameter(parameter.name):
                known = [name for name in self.get_parameters_by_prefix("") if not name.startswith("qos_overrides")]
                return SetParametersResult(successful=False, reason=unknown(parameter.name, known))
        return super().set_parameters_atomically(parameter_list)


def run_node(make: Callable[[], RunnableNode], args: Sequence[str] | None) -> int:
    """Make a node and spin it until SIGINT or SIGTERM, or until it fails; it then ends within 3 s.

    The signals are handled by :mod:`flmm_ros.signals` and not by rclpy, whose handler ends the context at once: a node
    must still be able to publish its last replies.

    Returns:
        Exit status 1 or 2 if there is no node to run, because it failed or because its parameters are wrong. Else it ends
        the process: with status 0 after a signal, 1 if the node failed.
    """
    ending = stop_on_signals()
    try:
        rclpy.init(args=list(sys.argv if args is None else args), signal_handler_options=SignalHandlerOptions.NO)
    except Exception as error:
        print(f"wrong ROS arguments: {one_line(error)}", file=sys.stderr)
        return 2
    try:
        node = make()
    except Exception as error:
        get_logger("flmm_ros").fatal(one_line(error))
        rclpy.try_shutdown()
        return 2 if isinstance(error, ParameterError) else 1
    node.ending = ending
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    _spin(executor, node, lambda: ending.is_set() or node.failure is not None)
    failure = node.failure  # one that comes while it ends is of no interest
    node.close(_GRACE)
    last = time.monotonic() + _LAST_WORDS
    _spin(executor, node, lambda: time.monotonic() > last)  # what came meanwhile gets its refusal too
    if failure is not None:
        node.get_logger().fatal(failure)
    executor.shutdown(timeout_sec=0.1)
    node.leave()
    rclpy.try_shutdown()
    # Without the interpreter's clean-up: that of PyTorch takes more than a second, and a thread may be deep in a model and
    # cannot be told to stop.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if failure is None else 1)


def _spin(executor: SingleThreadedExecutor, node: RunnableNode, done: Callable[[], bool]) -> None:
    while rclpy.ok() and not done():
        try:
            executor.spin_once(timeout_sec=_PERIOD)
        except Exception as error:  # a message that cannot be taken must not end the node
            node.get_logger().error(f"event dropped: {one_line(error)}")
