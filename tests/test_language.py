"""Questions and answers about simulated scenes, checked against masks, positions and a reader of phrases of its own."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from flmm_core.data.samples import MISTAKE, NO_ANSWERS, REFER, REFER_ABSENT, Turn
from flmm_sim.foreign_words import HELD_OUT_UNKNOWN_WORDS, UNKNOWN_WORDS
from flmm_sim.language import TURNS, UPPER_CASE_SHARE, questions
from flmm_sim.offscreen import RenderingUnavailableError
from flmm_sim.renderer import TabletopRenderer
from flmm_sim.scene import COLORS, KINDS, Scene
from flmm_sim.wording import NUMBERS, SYNONYMS, ZONES

SEEDS = range(100, 112)
KIND_OF = {word: kind for kind in KINDS for word in (kind, *SYNONYMS.get(kind, ()))}
KIND_OF |= {word + ("es" if word.endswith(("x", "sh")) else "s"): kind for word, kind in KIND_OF.items()}


@pytest.fixture(scope="module")
def scenes() -> Iterator[list[Scene]]:
    try:
        renderer = TabletopRenderer()
    except RenderingUnavailableError as error:
        pytest.skip(str(error))
    with renderer:
        yield [renderer.sample(seed) for seed in SEEDS]


@pytest.fixture(scope="module")
def asked(scenes: list[Scene]) -> list[tuple[Scene, Turn]]:
    many = dict.fromkeys(TURNS, 8)
    turns = [(s, turn) for i, s in enumerate(scenes) for turn in questions(s, np.random.default_rng(i), turns=many)]
    assert {turn.kind for _, turn in turns} == set(TURNS)
    return turns


def of_kind(asked: list[tuple[Scene, Turn]], kind: str) -> list[tuple[Scene, Turn]]:
    found = [(scene, turn) for scene, turn in asked if turn.kind == kind]
    assert len(found) >= 10
    return found


def phrases(turn: Turn) -> list[str]:
    return [turn.answer[span.start : span.end] for span in turn.spans]


class Truth:
    """What holds in a scene, from masks and the camera's pose alone."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.x = [np.nonzero(o.mask)[1].mean() / scene.image.shape[1] for o in scene.objects]
        self.y = [np.nonzero(o.mask)[0].mean() / scene.image.shape[0] for o in scene.objects]
        forward = scene.camera_pose[:2, 2] / np.linalg.norm(scene.camera_pose[:2, 2])
        self.ground = np.array([o.position[:2] for o in scene.objects])
        self.away = self.ground @ forward

    def holds(self, relation: str, index: int, anchor: int) -> bool:
        x, away = self.x[index] - self.x[anchor], self.away[index] - self.away[anchor]
        return {"left": x < 0, "right": x > 0, "front": away < 0, "behind": away > 0}[relation]

    def holders(self, relation: str, anchor: int) -> list[int]:
        others = [i for i in range(len(self.x)) if i != anchor]
        if relation == "next":
            return self.nearest(others, anchor)
        return [i for i in others if self.holds(relation, i, anchor)]

    def nearest(self, candidates: Sequence[int], anchor: int) -> list[int]:
        distance = {i: float(np.linalg.norm(self.ground[i] - self.ground[anchor])) for i in candidates}
        return [min(distance, key=lambda i: distance[i])] if distance else []

    def meant(self, words: str) -> list[int]:
        """Objects that a phrase may mean: colour, kind or "thing", and perhaps a relation to another such phrase."""
        relation = re.search(
            r" (to the left of|left of|to the right of|right of|in front of|behind|next to|beside|closest to) the ", words
        )
        candidates = list(range(len(self.x)))
        head = words
        if relation:
            head = words[: relation.start()]
            (anchor,) = self.meant(words[relation.end() :])
            said = relation[1]
            known = next((name for name in ("left", "right", "front", "behind") if name in said), "next")
            candidates = self.holders(known, anchor)
        for word in (color for color in COLORS if color in head.split()):
            candidates = [i for i in candidates if self.scene.objects[i].color == word]
        noun = head.removeprefix("the ").removeprefix(" ".join(c for c in COLORS if c in head.split())).strip()
        if noun not in ("object", "thing", "one"):
            candidates = [i for i in candidates if self.scene.objects[i].kind == KIND_OF.get(noun)]
        return candidates


def test_same_seed_same_questions(scenes: list[Scene]) -> None:
    once, again, other = (questions(scenes[0], np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert once == again != other


def test_no_turn_comes_twice_and_no_kind_too_often(scenes: list[Scene]) -> None:
    for scene in scenes:
        turns = questions(scene, np.random.default_rng(0))
        for kind, most in TURNS.items():
            texts = [(turn.answer if kind in NO_ANSWERS else turn.question).lower() for turn in turns if turn.kind == kind]
            assert len(texts) == len(set(texts)) <= most


def test_some_questions_are_in_upper_case(asked: list[tuple[Scene, Turn]]) -> None:
    share = np.mean([turn.question.isupper() for _, turn in asked if turn.kind not in (REFER, REFER_ABSENT)])
    assert UPPER_CASE_SHARE / 2 < share < UPPER_CASE_SHARE * 2
    assert len({turn.question for _, turn in asked if turn.kind in (REFER, REFER_ABSENT)}) == 1


def test_spans_lie_in_order_inside_the_answer_and_cover_names(asked: list[tuple[Scene, Turn]]) -> None:
    for scene, turn in asked:
        ends = [0]
        for span, words in zip(turn.spans, phrases(turn), strict=True):
            assert ends[-1] <= span.start < span.end <= len(turn.answer)
            ends.append(span.end)
            assert words == words.strip(" .,")
            assert bool(span.objects) == (turn.kind != "absence") or turn.kind in (REFER_ABSENT, MISTAKE)
            assert all(0 <= index < len(scene.objects) for index in span.objects)
            if turn.kind in ("where", "fetch", "relation"):
                (index,) = span.objects
                assert words == scene.objects[index].name
            elif turn.kind in ("attribute", "presence") and len(span.objects) == 1:
                assert words in (scene.objects[span.objects[0]].name, scene.objects[span.objects[0]].kind)
        assert turn.present == tuple(span for span in turn.spans if span.objects)
        if turn.kind not in (REFER, REFER_ABSENT):
            assert turn.answer[0].isupper() and turn.answer.endswith(".")


def test_lists_name_everything_once_by_kind_and_colour(asked: list[tuple[Scene, Turn]]) -> None:
    for scene, turn in of_kind(asked, "list"):
        assert sorted(index for span in turn.spans for index in span.objects) == list(range(len(scene.objects)))
        names = [scene.objects[span.objects[0]].name for span in turn.spans]
        assert names == sorted(set(names), key=lambda name: (KINDS.index(name.split()[1]), COLORS.index(name.split()[0])))
        for span, name, words in zip(turn.spans, names, phrases(turn), strict=True):
            assert {scene.objects[index].name for index in span.objects} == {name}
            number = NUMBERS[len(span.objects)]
            assert words == name if len(span.objects) == 1 else re.fullmatch(f"{number} {name}(s|es)", words)
        assert turn.answer.count(" and ") == (len(names) > 1)


def test_places(asked: list[tuple[Scene, Turn]]) -> None:
    assert len(set(ZONES.values())) == 9
    for scene, turn in of_kind(asked, "where"):
        index = turn.spans[0].objects[0]
        place = turn.answer[turn.spans[0].end :].removeprefix(" is ").removesuffix(".")
        truth = Truth(scene)
        x, y = truth.x[index], truth.y[index]
        column = "left" if x < 0.4 else "right" if x > 0.6 else "middle"
        row = "back" if y < 0.4 else "front" if y > 0.56 else "centre"
        assert place == ZONES[column, row]
        assert [o.name for o in scene.objects].count(scene.objects[index].name) == 1


def test_relations(asked: list[tuple[Scene, Turn]]) -> None:
    seen = set()
    for scene, turn in of_kind(asked, "relation"):
        *found, anchor = [span.objects[0] for span in turn.spans]
        truth = Truth(scene)
        relation = next(r for r in ("left", "right", "front", "behind", "next") if r in turn.answer.split(" the ")[-2])
        compared = " or " in turn.question.lower()
        if compared:
            assert truth.holds(relation, found[0], anchor)
        else:
            assert found == truth.nearest(truth.holders(relation, anchor), anchor)
            assert turn.answer.startswith("Nothing") == (not found)
        seen.add((relation, compared))
    assert len(seen) >= 8


def test_given_phrases_mean_one_thing(asked: list[tuple[Scene, Turn]]) -> None:
    relational = 0
    for scene, turn in of_kind(asked, REFER):
        assert turn.answer == "".join(f"{words}. " for words in phrases(turn)).rstrip()
        for words, span in zip(phrases(turn), turn.spans, strict=True):
            assert Truth(scene).meant(words) == list(span.objects), words
            relational += " the " in words.removeprefix("the ")
    assert relational >= 10


def test_what_is_fetched_is_what_was_meant(asked: list[tuple[Scene, Turn]]) -> None:
    verb = {
        "I will pick up": ("pick", "grab", "take", "lift"),
        "I will bring": ("bring", "give", "hand", "fetch", "need", "get"),
    }
    verb["I am pointing"] = ("point", "show", "which")
    for scene, turn in of_kind(asked, "fetch"):
        asked_for = turn.question.lower()
        opening = next(opening for opening in verb if turn.answer.startswith(opening))
        assert any(word in asked_for for word in verb[opening])
        words = re.sub(r"( please)?[.?]?$", "", asked_for.split(" the ", 1)[1])
        words = re.sub(r" up$", "", words)
        assert Truth(scene).meant(words) == [turn.spans[0].objects[0]], asked_for


def test_colours_and_kinds(asked: list[tuple[Scene, Turn]]) -> None:
    for scene, turn in of_kind(asked, "attribute"):
        thing = scene.objects[turn.spans[0].objects[0]]
        if turn.answer.startswith("It is"):
            assert turn.answer in (f"It is a {thing.name}.", f"It is an {thing.name}.") and thing.color in turn.question.lower()
            assert sum(o.color == thing.color for o in scene.objects) == 1
        else:
            assert turn.answer == f"The {thing.kind} is {thing.color}."
            assert sum(o.kind == thing.kind for o in scene.objects) == 1


def counted(scene: Scene, noun: Sequence[str]) -> list[int]:
    """Objects that "red objects", "objects" or "mugs" counts."""
    color = noun[0] if noun[0] in COLORS else None
    kind = KIND_OF.get(noun[-1])
    return [i for i, o in enumerate(scene.objects) if (color is None or o.color == color) and (kind is None or o.kind == kind)]


def test_counts(asked: list[tuple[Scene, Turn]]) -> None:
    for scene, turn in of_kind(asked, "count"):
        number, *noun = phrases(turn)[0].split()
        assert list(turn.spans[0].objects) == counted(scene, noun)
        assert NUMBERS.index(number) == len(turn.spans[0].objects)
        assert turn.answer.startswith("There is one " if number == "one" else "There are ")


def test_presence_and_absence(asked: list[tuple[Scene, Turn]]) -> None:
    for scene, turn in of_kind(asked, "presence"):
        words = phrases(turn)[0].split()
        noun = words[1:] if words[0] in NUMBERS else words
        assert turn.answer.startswith("Yes") and set(turn.spans[0].objects) <= set(counted(scene, noun))
        assert len(turn.spans[0].objects) == (NUMBERS.index(words[0]) if words[0] in NUMBERS else 1)
    for scene, turn in of_kind(asked, "absence"):
        (span,) = turn.spans
        noun = phrases(turn)[0].split()
        assert span.objects == () and counted(scene, noun) == [], turn
        assert re.fullmatch(r"(No, there is no|There are no|I do not see an?) .*\.", turn.answer)
        assert KIND_OF[noun[-1]] in {KIND_OF.get(w) for w in re.findall("[a-z]+", turn.question.lower())} or (
            "frying pan" in turn.question.lower()
        )


def test_absent_phrases_mean_nothing(asked: list[tuple[Scene, Turn]]) -> None:
    absent = {"relation": 0, "name": 0}
    for scene, turn in of_kind(asked, REFER_ABSENT):
        assert turn.answer == "".join(f"{words}. " for words in phrases(turn)).rstrip()
        assert any(span.objects == () for span in turn.spans)
        for words, span in zip(phrases(turn), turn.spans, strict=True):
            assert Truth(scene).meant(words) == list(span.objects), words
            if not span.objects:
                absent["relation" if " the " in words.removeprefix("the ") else "name"] += 1
    assert min(absent.values()) >= 10


def test_mistakes_name_a_thing_that_is_not_there(asked: list[tuple[Scene, Turn]]) -> None:
    for scene, turn in of_kind(asked, MISTAKE):
        names = [o.name for o in scene.objects]
        assert sum(span.objects == () for span in turn.spans) == 1
        for words, span in zip(phrases(turn), turn.spans, strict=True):
            if span.objects == ():
                assert words not in names and words.split()[0] in COLORS and words.split()[1] in KINDS
            else:
                assert {words} == {names[i] for i in span.objects} or words.split()[0] in NUMBERS


def test_what_this_world_does_not_have_is_not_known(scenes: list[Scene], asked: list[tuple[Scene, Turn]]) -> None:
    assert not set(UNKNOWN_WORDS) & set(HELD_OUT_UNKNOWN_WORDS) and not {*UNKNOWN_WORDS, *HELD_OUT_UNKNOWN_WORDS} & set(KIND_OF)
    for _, turn in of_kind(asked, "unknown"):
        assert (turn.answer, turn.spans) == ("I do not know what that is.", ())
        assert not set(re.findall("[a-z-]+", turn.question.lower())) & (set(KIND_OF) - {"can"}), turn
    only = {"unknown": 60}
    named = [t.question.lower() for t in questions(scenes[0], np.random.default_rng(0), turns=only, unknown_words=["qwop"])]
    assert 20 < sum("qwop" in question for question in named) < len(named)  # the others are nonsense
    assert not any(word in question.split() for question in named for word in UNKNOWN_WORDS)


def test_talk_is_not_understood(asked: list[tuple[Scene, Turn]]) -> None:
    turns = [turn for _, turn in of_kind(asked, "talk")]
    assert {(turn.answer, turn.spans) for turn in turns} == {("I do not understand.", ())}
    asking = [turn.question for _, turn in asked if turn.kind not in (*NO_ANSWERS, "unknown", "talk")]
    assert not {turn.question.lower() for turn in turns} & {question.lower() for question in asking}
