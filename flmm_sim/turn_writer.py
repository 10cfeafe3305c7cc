"""Base of the writers of turns: each kind of turn is a method of a subclass, found by its name."""

from __future__ import annotations

from collections.abc import Callable

from flmm_core.data.samples import Turn
from flmm_sim.scene_facts import SceneFacts
from flmm_sim.speaker import Speaker


class TurnWriter:
    """Writes turns in a speaker's words; subclasses have a method ``_kind`` for each kind."""

    def __init__(self, facts: SceneFacts, speaker: Speaker) -> None:
        self.facts = facts
        self.speaker = speaker
        self.rng = speaker.rng

    def ask(self, kind: str) -> Turn | None:
        """A turn of that kind, or None if the sampled question has no clear answer."""
        ask: Callable[[], Turn | None] = getattr(self, f"_{kind}")
        return ask()
