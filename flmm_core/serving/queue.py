"""The queue of waiting requests: clients in turn (round robin), and a share of its places for each client."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable

from flmm_core.serving.requests import Mode, Request


class FairQueue:
    """A client that sends many requests delays its own and loses its own, not those of others.

    First in, first out for each client. One client may use all places, until another one needs them.
    Not thread-safe, but its length may be read from any thread.
    """

    def __init__(self) -> None:
        self.capacity = 0
        """Number of places."""
        self._lines: OrderedDict[Hashable, deque[Request]] = OrderedDict()
        """Requests by client; the client whose turn it is comes first."""
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def put(self, request: Request) -> Request | None:
        """Append to the requests of its client.

        Returns:
            The request that finds no place in a full queue: the newest one of the client with the most requests, if the
            new one's client has at least two fewer; else the new one. None if there was a place.
        """
        line = self._lines.get(request.client, ())
        displaced = None
        if self._length >= self.capacity:
            longest = max(self._lines.values(), key=len)
            if len(longest) < len(line) + 2:
                return request
            displaced = longest.pop()
            self._length -= 1
        self._lines.setdefault(request.client, deque()).append(request)
        self._length += 1
        return displaced

    def get(self) -> Request | None:
        """Remove and return the next request; None if the queue is empty."""
        if not self._lines:
            return None
        client, line = self._lines.popitem(last=False)
        request = line.popleft()
        if line:
            self._lines[client] = line
        self._length -= 1
        return request

    def get_like(self, mode: Mode, most: int) -> list[Request]:
        """Remove and return the next requests, up to ``most`` of them, and up to the first one of another mode."""
        taken: list[Request] = []
        while len(taken) < most and self._lines and next(iter(self._lines.values()))[0].mode == mode:
            request = self.get()
            assert request is not None
            taken.append(request)
        return taken

    def remove(self, request: Request) -> None:
        """Remove a request; does nothing if it is not in the queue."""
        line = self._lines.get(request.client, deque())
        if request in line:
            line.remove(request)
            self._length -= 1
            if not line:
                del self._lines[request.client]

    def clear(self) -> list[Request]:
        """Remove and return all requests."""
        left = [request for line in self._lines.values() for request in line]
        self._lines.clear()
        self._length = 0
        return left
