"""The places for commands in a fleet, given out fairly: one client cannot take all, and none overtakes one that waits."""

from __future__ import annotations

import time
from collections import Counter, OrderedDict

_PATIENCE = 5.0
"""Seconds after which a client that was refused and has not asked again loses its turn; clients ask twice a second."""
_REMEMBERED = 10_000
"""Clients whose turn is kept."""


class Places:
    """A limited number of places; who is refused asks again and keeps its turn. Not thread-safe.

    A client may take a place while it has fewer than there are free ones: it alone gets half of them, two get a third each. So
    there is always one left for a client that has none. Once all are taken, those that were refused are remembered in the
    order in which they came first, and a newcomer gets only a place that none of them needs.

    Args:
        number: of places.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._taken: Counter[str] = Counter()
        self._turns: OrderedDict[str, float] = OrderedDict()
        """Clients that were refused, the one that waits longest first, each with the time of its last attempt."""

    def take(self, client: str) -> str:
        """Take a place for a command of a client.

        Returns:
            Why there is none; empty if it was taken, and then :meth:`give_back` returns it.
        """
        now = time.monotonic()
        free = self._number - self._taken.total()
        if 0 < free <= self._taken[client]:
            return f"busy: this client has {self._taken[client]} commands here already, and others need the rest"
        ahead = self._ahead(client, now, free)
        if ahead < free:
            self._turns.pop(client, None)
            self._taken[client] += 1
            return ""
        if client in self._turns or len(self._turns) < _REMEMBERED:
            self._turns[client] = now  # keeps its position
        return (
            f"busy: {self._number - free} commands are here already, of {self._number} (--waiting), and others wait for a place"
        )

    def give_back(self, client: str) -> None:
        """Return the place of a command that has ended."""
        self._taken[client] -= 1
        if not self._taken[client]:
            del self._taken[client]

    def _ahead(self, client: str, now: float, most: int) -> int:
        """Number of clients that wait longer than this one, ``most`` at most; those that have given up are forgotten."""
        ahead, gone = 0, []
        for other, seen in self._turns.items():
            if other == client or ahead >= most:
                break
            if now - seen > _PATIENCE:
                gone.append(other)
            else:
                ahead += 1
        for other in gone:
            del self._turns[other]
        return ahead
