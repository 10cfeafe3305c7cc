"""What counts as clear: places, sides and distances by hand on scenes of a few rectangles; no renderer."""

from __future__ import annotations

import numpy as np
import pytest

from flmm_core.data.samples import REFER, Span, Turn
from flmm_sim.answer_text import AnswerText
from flmm_sim.scene import Scene, SceneObject
from flmm_sim.scene_facts import SceneFacts


def facts_of(*things: tuple[str, float, float, float, float]) -> SceneFacts:
    """Name; centroid of the mask in image widths and heights; right and away in metres."""
    objects = []
    for name, x, y, right, away in things:
        color, kind = name.split()
        mask = np.zeros((100, 200), bool)
        mask[round(y * 100), round(x * 200)] = True
        objects.append(SceneObject(kind, color, (0.0, 0.0, 0.0), right, away, mask))
    return SceneFacts(Scene(np.zeros((100, 200, 3), np.uint8), np.zeros((100, 200)), tuple(objects), np.eye(3), np.eye(4)))


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (0.3, 0.3, "at the back left"),
        (0.5, 0.48, "in the middle"),
        (0.7, 0.48, "on the right"),
        (0.5, 0.7, "at the front"),
        (0.41, 0.7, None),
        (0.59, 0.7, None),
        (0.3, 0.4, None),
        (0.3, 0.56, None),
    ],
)
def test_zones_leave_their_boundaries_out(x: float, y: float, words: str | None) -> None:
    assert facts_of(("red mug", x, y, 0, 0)).zone(0) == words


def test_sides_need_a_margin() -> None:
    facts = facts_of(("red mug", 0.5, 0.5, 0, 0), ("red can", 0.45, 0.5, 0, 0.06), ("red box", 0.4, 0.5, 0, 0.08))
    assert facts.holds("left", 1, 0) is None and facts.holds("behind", 1, 0) is None
    assert facts.holds("left", 2, 0) is True and facts.holds("right", 2, 0) is False and facts.holds("right", 0, 2) is True
    assert facts.holds("behind", 2, 0) is True and facts.holds("front", 2, 0) is False and facts.holds("front", 0, 2) is True
    assert facts.holders("left", 0) is None  # the can is too close to call
    clear = facts_of(("red mug", 0.5, 0.5, 0, 0), ("red can", 0.1, 0.5, 0, 0.2), ("red box", 0.4, 0.5, 0, 0.1))
    assert clear.holders("left", 0) == [1, 2] and clear.holders("right", 0) == [] and clear.holders("behind", 2) == [1]


def test_the_nearest_must_be_clearly_nearer() -> None:
    facts = facts_of(("red mug", 0.5, 0.5, 0, 0), ("red can", 0.2, 0.5, 0.06, 0.08), ("red box", 0.8, 0.5, 0.14, 0))
    assert facts.clearly_nearest(0, [1, 2], 0.75) == [1]  # 0.10 m and 0.14 m
    assert facts.clearly_nearest(0, [1, 2], 0.65) is None
    assert facts.holders("next", 0) is None and facts.holders("next", 2) is None
    assert facts.clearly_nearest(0, [2], 0.65) == [2] and facts.clearly_nearest(0, [], 0.65) == []
    assert facts_of(("red mug", 0.5, 0.5, 0, 0), ("red can", 0.2, 0.5, 0, 9)).holders("next", 0) == [1]


def test_objects_by_their_words() -> None:
    facts = facts_of(("red mug", 0.5, 0.5, 0, 0), ("blue mug", 0.5, 0.5, 0, 0), ("red mug", 0.5, 0.5, 0, 0))
    assert len(facts) == 3 and facts.of_name("red mug") == [0, 2] == facts.of_color("red")
    assert facts.of_kind("mug") == [0, 1, 2] and facts.of_kind("can") == []


def test_enumerations() -> None:
    there = ["red box", "orange mug", "red box"]
    text = AnswerText("I see ").name_all([*there, "blue can"], there).say(".")
    assert text.text == "I see an orange mug, a blue can and two red boxes."
    assert [(text.text[s.start : s.end], s.objects) for s in text.spans] == [
        ("orange mug", (1,)),
        ("blue can", ()),
        ("two red boxes", (0, 2)),
    ]


def test_sentences_begin_with_a_capital_and_phrases_as_they_are() -> None:
    assert AnswerText("nothing.").turn("relation", "?") == Turn("relation", "?", "Nothing.", ())
    assert AnswerText().name("mug", [0]).say(".").turn(REFER, "?") == Turn(REFER, "?", "mug.", (Span(0, 3, (0,)),))
