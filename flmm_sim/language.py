"""Generates different questions about a scene and their true answers, with a number of turns for each kind.

Answers follow from the scene alone (:mod:`flmm_sim.scene_facts`), in randomly chosen words (:mod:`flmm_sim.speaker`). They come
with the character range of each name and the objects that it names. Questions with a right answer are in
:mod:`flmm_sim.true_turns`, turns for the heads alone in :mod:`flmm_sim.grounding_turns`; the words are in
:mod:`flmm_sim.wording` and :mod:`flmm_sim.foreign_words`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from flmm_core.data.samples import MISTAKE, NO_ANSWERS, REFER, REFER_ABSENT, Turn
from flmm_sim.foreign_words import UNKNOWN_WORDS
from flmm_sim.grounding_turns import REFER_PROMPT, GroundingTurns
from flmm_sim.scene import Scene
from flmm_sim.scene_facts import SceneFacts
from flmm_sim.speaker import Speaker
from flmm_sim.true_turns import TrueTurns

TURNS: Mapping[str, int] = {
    "list": 3,
    "where": 5,
    "fetch": 3,
    "relation": 6,
    "attribute": 2,
    "count": 3,
    "presence": 2,
    "absence": 3,
    "unknown": 1,
    "talk": 1,
    REFER: 3,
    REFER_ABSENT: 2,
    MISTAKE: 2,
}
"""Number of turns of each kind for an image."""
QUESTION_KINDS = tuple(kind for kind in TURNS if kind not in NO_ANSWERS)
"""Kinds with one right answer."""

UPPER_CASE_SHARE = 0.04
"""Share of questions in upper case."""


def questions(
    scene: Scene,
    rng: np.random.Generator,
    *,
    turns: Mapping[str, int] = TURNS,
    unknown_words: Sequence[str] = UNKNOWN_WORDS,
) -> list[Turn]:
    """Different turns about a scene, as many of each kind as it has a clear answer for.

    Args:
        scene: that the turns are about.
        rng: source of all choices.
        turns: most turns of each kind.
        unknown_words: objects that are unknown in this world.
    """
    facts = SceneFacts(scene)
    speaker = Speaker(facts, rng, unknown_words)
    true, grounding = TrueTurns(facts, speaker), GroundingTurns(facts, speaker)
    asked: list[Turn] = []
    for kind, most in turns.items():
        author = grounding if kind in NO_ANSWERS else true
        seen: set[str] = set()
        for _ in range(most * 3):
            turn = author.ask(kind)
            text = "" if turn is None else (turn.answer if kind in NO_ANSWERS else turn.question).lower()
            if turn is not None and text not in seen:
                seen.add(text)
                asked.append(turn)
            if len(seen) == most:
                break
    return [_in_upper_case(turn) if rng.random() < UPPER_CASE_SHARE else turn for turn in asked]


def _in_upper_case(turn: Turn) -> Turn:
    return turn if turn.question == REFER_PROMPT else replace(turn, question=turn.question.upper())
