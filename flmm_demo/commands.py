"""The commands of the demo: of every kind, over several scenes, each with its true answer."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from flmm_core.data.samples import REFER, REFER_ABSENT, Span, Turn
from flmm_sim.foreign_words import HELD_OUT_UNKNOWN_WORDS
from flmm_sim.language import questions
from flmm_sim.renderer import TabletopRenderer
from flmm_sim.scene import Scene, scene_seed

KINDS = (
    "list", "relation", "absence", "where", "fetch", "attribute", "count", "presence", "unknown", "talk", REFER, REFER_ABSENT,
)  # fmt: skip
"""Kinds of commands, in the order in which the demo plans them."""
_REFER = (REFER, REFER_ABSENT)
_PER_KIND = 6
"""Commands of each kind and scene to choose from."""

_PREFERRED = {
    "relation": ("left",),
    "attribute": ("color",),
    "unknown": HELD_OUT_UNKNOWN_WORDS,
    REFER_ABSENT: HELD_OUT_UNKNOWN_WORDS,
}
"""Of some kinds, words of which the chosen command has one if possible."""


@dataclass(frozen=True)
class DemoCommand:
    """A command of the demo with its truth."""

    seed: int
    """Of the scene."""
    scene: Scene
    turn: Turn
    """Kind, words and true answer."""

    @property
    def refer(self) -> bool:
        """Whether the words are a phrase to ground, not a question."""
        return self.turn.kind in _REFER

    @property
    def text(self) -> str:
        """The words that are sent."""
        return self.turn.question

    def true_mask(self, objects: tuple[int, ...]) -> np.ndarray:
        """Union of the masks of some objects of the scene, ``[H, W]`` bool."""
        return np.any([self.scene.objects[index].mask for index in objects], axis=0)


def plan(count: int, scenes: int, seed: int) -> list[DemoCommand]:
    """Choose commands of all kinds about several scenes that no training used, ordered by scene.

    Args:
        count: commands.
        scenes: different scenes.
        seed: of scenes and questions.

    Raises:
        ValueError: the scenes have too few questions.
    """
    seeds = [scene_seed("demo", seed, index) for index in range(scenes)]
    with TabletopRenderer() as renderer:
        rendered = [renderer.sample(scene) for scene in seeds]
    amounts = dict.fromkeys(KINDS, _PER_KIND)
    turns = []
    for at, scene in zip(seeds, rendered, strict=True):
        asked = questions(scene, np.random.default_rng(at), turns=amounts, unknown_words=HELD_OUT_UNKNOWN_WORDS)
        turns.append([single for turn in asked for single in (_phrases(turn) if turn.kind in _REFER else [turn])])
    planned: list[tuple[int, DemoCommand]] = []
    missed = 0
    kinds = itertools.cycle(KINDS)
    while len(planned) < count:
        kind = next(kinds)
        for at in ((len(planned) + offset) % scenes for offset in range(scenes)):
            turn = _take(turns[at], kind)
            if turn is not None:
                planned.append((at, DemoCommand(seeds[at], rendered[at], turn)))
                missed = 0
                break
        else:
            missed += 1
        if missed >= len(KINDS):
            raise ValueError(f"{scenes} scenes have questions for {len(planned)} commands: expected {count}; use more scenes")
    return [command for _, command in sorted(planned, key=lambda entry: entry[0])]


def _take(turns: list[Turn], kind: str) -> Turn | None:
    """Remove and return a turn of this kind; None if there is none left."""
    found = [turn for turn in turns if turn.kind == kind]
    if not found:
        return None
    words = _PREFERRED.get(kind, ())
    chosen = next((turn for turn in found if any(word in turn.question.lower() for word in words)), found[0])
    turns.remove(chosen)
    return chosen


def _phrases(turn: Turn) -> list[Turn]:
    """A turn of refer mode as turns of one phrase each, as a message holds one phrase: those present, or those absent."""
    spans = [span for span in turn.spans if bool(span.objects) == (turn.kind == REFER)]
    phrases = [turn.answer[span.start : span.end] for span in spans]
    return [
        Turn(turn.kind, phrase, phrase, (Span(0, len(phrase), span.objects),))
        for phrase, span in zip(phrases, spans, strict=True)
    ]
