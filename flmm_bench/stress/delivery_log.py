"""The delivery log of the stress test: every command that was sent, and its replies."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from flmm_ros.msg import GroundedAnswer

STATUS_NAMES = {
    getattr(GroundedAnswer, name): name.removeprefix("STATUS_").lower().replace("_", " ")
    for name in dir(GroundedAnswer)
    if name.startswith("STATUS_")
}
_RECENT = 200
"""Newest commands, and as many goals, among which pending ones are looked for."""


@dataclass
class Entry:
    """One command or goal, and how many replies it got."""

    published: tuple[int, int] = (0, 0)
    """Of a command by topic: the system clock before and after publishing, ns. The reply's ``command_stamp`` lies between."""
    replies: int = 0
    lost_in_kill: bool = False
    """Without a reply when the node was killed with SIGKILL."""

    @property
    def pending(self) -> bool:
        """Whether a reply is still due."""
        return self.replies == 0 and not self.lost_in_kill


@dataclass
class DeliveryLog:
    """Every command by topic or action, and its replies."""

    commands: list[Entry] = field(default_factory=list)
    """By topic."""
    goals: list[Entry] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    """Replies by status."""
    cancelled: int = 0
    """Goals that their client cancelled."""
    unmatched: int = 0
    """Replies that belong to no command of this log."""
    ages: list[float] = field(default_factory=list)
    """Of each answer: age of its image, seconds."""
    seconds: list[float] = field(default_factory=list)
    """Of each answer: time since its command arrived."""
    watched: int = 0
    """Results for watch lists."""
    tracked: int = 0
    """Those of them whose masks were tracked."""

    def recent_pending(self) -> int:
        """Pending ones among the newest commands and goals."""
        return sum(entry.pending for entry in (*self.commands[-_RECENT:], *self.goals[-_RECENT:]))

    def add_reply(self, message: GroundedAnswer) -> None:
        """Record a reply by topic; it is matched to its command by ``command_stamp``."""
        stamp = message.command_stamp.sec * 10**9 + message.command_stamp.nanosec
        entry = next((e for e in reversed(self.commands) if e.published[0] <= stamp <= e.published[1]), None)
        if entry is None:
            self.unmatched += 1
        else:
            entry.replies += 1
        self._count(message)

    def add_result(self, entry: Entry, message: GroundedAnswer) -> None:
        """Record the result of a goal."""
        entry.replies += 1
        self._count(message)

    def _count(self, message: GroundedAnswer) -> None:
        self.statuses[STATUS_NAMES[message.status]] += 1
        if message.status == GroundedAnswer.STATUS_ANSWERED:
            self.ages.append(message.image_age)
            self.seconds.append(message.durations.total)

    def record_kill(self) -> int:
        """Record that the node was killed: no reply is due any more. Returns how many were pending."""
        pending = [entry for entry in (*self.commands, *self.goals) if entry.pending]
        for entry in pending:
            entry.lost_in_kill = True
        return len(pending)

    @property
    def lost(self) -> int:
        """Commands and goals that never got a reply, without those that were pending when the node was killed."""
        return sum(entry.pending for entry in (*self.commands, *self.goals))

    @property
    def duplicates(self) -> int:
        """Replies beyond the first of each command or goal."""
        return sum(max(0, entry.replies - 1) for entry in (*self.commands, *self.goals))
