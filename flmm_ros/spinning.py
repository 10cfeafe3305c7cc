"""Runs a node as a process: signals, exit status, and a one-line message if it fails."""

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
"""Seconds between two checks for signals."""
# launch sends SIGTERM 5 s after SIGINT. A node ends within 3 s, which include _PERIOD and the two times below.
_GRACE = 1.5
"""Seconds for a node to finish the command in progress."""
_DRAINING = 0.3
"""Seconds for which it then still refuses commands that arrive."""


class RunnableNode(Node):
    """A node that :func:`run_node` can run."""

    failure: str | None = None
    """Why the node has to end; None while it works."""
    ending: threading.Event
    """Set by a signal: long operations must then give up."""

    def close(self, timeout: float) -> None:
        """Finish or refuse all commands within ``timeout`` seconds."""

    def leave(self) -> None:
        """Destroy the node."""
        self.destroy_node()

    def set_parameters_atomically(self, parameter_list: list[Parameter[Any]]) -> SetParametersResult:
        """As in rclpy, whose parameter services all use it, but an unknown parameter is refused with the closest known name."""
        for parameter in parameter_list:
            if not self.has_parameter(parameter.name):
                known = [name for name in self.get_parameters_by_prefix("") if not name.startswith("qos_overrides")]
                return SetParametersResult(successful=False, reason=unknown(parameter.name, known))
        return super().set_parameters_atomically(parameter_list)


def run_node(make: Callable[[], RunnableNode], args: Sequence[str] | None) -> int:
    """Create a node and spin it until SIGINT or SIGTERM, or until it fails; it then ends within 3 s.

    The signals are handled by :mod:`flmm_ros.signals` and not by rclpy, whose handler shuts the context down at once, before
    the node can publish its last replies.

    Returns:
        Only if the node cannot be created: exit status 2 for wrong arguments or parameters, 1 for other errors. Otherwise
        this function ends the process, with status 0 after a signal and 1 if the node failed.
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
    failure = node.failure  # failures during shutdown are ignored
    node.close(_GRACE)
    last = time.monotonic() + _DRAINING
    _spin(executor, node, lambda: time.monotonic() > last)  # commands that arrived meanwhile are refused
    if failure is not None:
        node.get_logger().fatal(failure)
    executor.shutdown(timeout_sec=0.1)
    node.leave()
    rclpy.try_shutdown()
    # Without the interpreter's clean-up, because that of PyTorch takes more than a second, and a thread may still run a model.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0 if failure is None else 1)


def _spin(executor: SingleThreadedExecutor, node: RunnableNode, done: Callable[[], bool]) -> None:
    while rclpy.ok() and not done():
        try:
            executor.spin_once(timeout_sec=_PERIOD)
        except Exception as error:  # an event that cannot be processed must not end the node
            node.get_logger().error(f"event dropped: {one_line(error)}")
