"""Signs of life of a node while a client waits for its reply."""

from __future__ import annotations

import time

from rcl_interfaces.srv import ListParameters
from rclpy.client import Client
from rclpy.node import Node
from rclpy.task import Future

PING = 1.0
"""Seconds between two pings."""
_SILENCE = 5.0
"""Seconds without an answer to a ping after which the node is taken for lost."""
_LAST_WORDS = 1.0
"""Seconds in which the reply of a node that has left, or was restarted, may still arrive."""


class NoReplyError(RuntimeError):
    """The node did not react in time; the message names what was waited for."""


class Pulse:
    """Signs of life of a node: its answers to pings, and the identity of its publisher of ~/status.

    Args:
        node: of the client.
        pings: client of a service of the other node.
        name: full name of the other node.
    """

    def __init__(self, node: Node, pings: Client, name: str) -> None:
        self._node = node
        self._pings = pings
        self._name = name
        self._asked = self._heard = time.monotonic()
        self._identity: set[bytes] = set()
        self._changed: float | None = None
        """When another process was found in place of the node, or none."""

    def check(self) -> None:
        """Ping the node now and then.

        Raises:
            NoReplyError: it is lost.
        """
        now = time.monotonic()
        if now > self._heard + _SILENCE:
            raise NoReplyError(f"{self._name} has given no sign of life for {_SILENCE:g} s: it was killed, or it hangs")
        if self._changed is not None and now > self._changed + _LAST_WORDS:
            raise NoReplyError(f"{self._name} has left or was restarted before it replied")
        if now < self._asked + PING:
            return
        self._asked = now
        found = self._node.get_publishers_info_by_topic(f"{self._name}/status")
        identity = {bytes(one.endpoint_gid) for one in found}
        if self._identity and identity != self._identity and self._changed is None:
            self._changed = now
        self._identity = self._identity or identity
        if self._pings.service_is_ready():
            self._pings.call_async(ListParameters.Request()).add_done_callback(self._on_answer)

    def _on_answer(self, answer: Future) -> None:
        self._heard = time.monotonic()
