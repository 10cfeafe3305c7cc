"""Runs a node as a process: signals, exit status, and a one-line message if it fails."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import rclpy
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import SetParametersResult
from rclpy.executors import ConditionReachedException, ShutdownException, SingleThreadedExecutor, TimeoutException
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.service import Service
from rclpy.signals import SignalHandlerOptions

from flmm_core.common.plain_text import one_line
from flmm_ros.parameter_names import ParameterError, unknown
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
        """As in rclpy, whose parameter services all use it, but for three things.

        An unknown parameter is refused with the closest known name, a whole number for a floating-point parameter becomes one,
        and a value that the parameter has already succeeds, also where it is read-only or locked.
        """
        changed = []
        for parameter in parameter_list:
            if not self.has_parameter(parameter.name):
                known = [name for name in self.get_parameters_by_prefix("") if not name.startswith("qos_overrides")]
                return SetParametersResult(successful=False, reason=unknown(parameter.name, known))
            current, given = self.get_parameter(parameter.name), parameter
            if (current.type_, given.type_) == (Parameter.Type.DOUBLE, Parameter.Type.INTEGER):
                given = Parameter(given.name, value=float(given.value))
            if (current.type_, current.value) != (given.type_, given.value):
                changed.append(given)
        return super().set_parameters_atomically(changed) if changed else SetParametersResult(successful=True)


class NodeExecutor(SingleThreadedExecutor):
    """Runs callbacks one after the other, but transitions of a lifecycle node beside them: a model may load for minutes.

    The lifecycle services of the node must be in a reentrant callback group. A transition that is requested during another one
    is refused by the state machine.
    """

    def spin_once(self, timeout_sec: float | None = None) -> None:
        """Wait for one callback and run it; a transition gets a thread of its own."""
        try:
            handler, entity, _ = self.wait_for_ready_callbacks(timeout_sec=timeout_sec)
        except (TimeoutException, ShutdownException, ConditionReachedException):
            return
        if isinstance(entity, Service) and entity.srv_type is ChangeState:
            threading.Thread(target=handler, name="transition", daemon=True).start()
            return
        handler()
        if (error := handler.exception()) is not None:
            raise error


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
    executor = NodeExecutor()
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
