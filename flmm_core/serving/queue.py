"""Requests that wait: in the order of arrival for each client, and clients in turn. Its length may be read from any thread."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable

from flmm_core.serving.requests import Mode, Request


class FairQueue:
    """Whoever sends many requests delays their own, not those of others."""

    def __init__(self) -> None:
        self._lines: OrderedDict[Hashable, deque[Request]] = OrderedDict()
        """Of each client that waits; the one whose turn it is comes first."""
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def put(self, request: Request) -> None:
        """Append to its client's line."""
        self._lines.setdefault(request.client, deque()).append(request)
        self._length += 1

    def get(self) -> Request | None:
        """Take the next one; None if nobody waits."""
        if not self._lines:
            return None
        client, line = self._lines.popitem(last=False)
        request = line.popleft()
        if line:
            self._lines[client] = line
        self._length -= 1
        return request

    def get_like(self, mode: Mode, most: int) -> list[Request]:
        """Take those that come next, as long as they are of a mode and there are at most so many."""
        taken: list[Request] = []
        while len(taken) < most and self._lines and next(iter(self._lines.values()))[0].mode == mode:
            request = self.get()
            assert request is not None
            taken.append(request)
        return taken

    def remove(self, request: Request) -> None:
        """Forget a request, if it waits."""
        line = self._lines.get(request.client, deque())
        if request in line:
            line.remove(request)
            self._length -= 1
            if not line:
                del self._lines[request.client]

    def clear(self) -> list[Request]:
        """Take all."""
        left = [request for line in self._lines.values() for request in line]
        self._lines.clear()
        self._length = 0
        return left
