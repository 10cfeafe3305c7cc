"""The books of the stress program: what was sent, and what came back for each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from flmm_ros.msg import GroundedAnswer

NAMES = {
    getattr(GroundedAnswer, name): name.removeprefix("STATUS_").lower().replace("_", " ")
    for name in dir(GroundedAnswer)
    if name.startswith("STATUS_")
}


@dataclass
class Entry:
    """One command."""

    sent: float
    """On the monotonic clock."""
    window: tuple[int, int] = (0, 0)
    """For topics: the system's clock before and after it was published, ns; the command_stamp of its reply is between."""
    replies: int = 0
    excused: bool = False
    """Without a reply when the node was killed with SIGKILL."""


@dataclass
class Books:
    """Every command by topic or action, and its replies."""

    commands: list[Entry] = field(default_factory=list)
    goals: list[Entry] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    rejected: int = 0
    """Goals that were rejected beyond the queue, or while the node was not active."""
    cancelled: int = 0
    """Goals that were cancelled by their client."""
    strays: int = 0
    """Replies to nothing that was sent."""
    ages: list[float] = field(default_factory=list)
    """Seconds: age of the image of each answer."""
    seconds: list[float] = field(default_factory=list)
    """Of each answer, from the arrival of its command."""
    watched: int = 0
    tracked: int = 0

    def waiting(self) -> int:
        """Commands and goals without a reply."""
        return sum(entry.replies == 0 and not entry.excused for entry in (*self.commands[-200:], *self.goals[-200:]))

    def reply(self, message: GroundedAnswer) -> None:
        """A reply by topic."""
        stamp = message.command_stamp.sec * 10**9 + message.command_stamp.nanosec
        entry = next((e for e in reversed(self.commands) if e.window[0] <= stamp <= e.window[1]), None)
        if entry is None:
            self.strays += 1
        else:
            entry.replies += 1
        self._count(message)

    def result(self, entry: Entry, message: GroundedAnswer) -> None:
        """The result of a goal."""
        entry.replies += 1
        self._count(message)

    def _count(self, message: GroundedAnswer) -> None:
        self.statuses[NAMES[message.status]] += 1
        if message.status == GroundedAnswer.STATUS_ANSWERED:
            self.ages.append(message.image_age)
            self.seconds.append(message.durations.total)

    def excuse(self) -> int:
        """The node is killed: what has no reply now gets none. Returns how many these are."""
        left = [entry for entry in (*self.commands, *self.goals) if entry.replies == 0 and not entry.excused]
        for entry in left:
            entry.excused = True
        return len(left)

    @property
    def lost(self) -> int:
        """Commands and goals that never got a reply, those apart that the killed node took with it."""
        return sum(entry.replies == 0 and not entry.excused for entry in (*self.commands, *self.goals))

    @property
    def doubled(self) -> int:
        """Replies beyond the first of a command."""
        return sum(max(0, entry.replies - 1) for entry in (*self.commands, *self.goals))
