"""Questions about a scene and their true answers, in the ways people talk to robots.

Every answer is decided by the scene alone: a question whose answer hangs on a few pixels or centimetres is not asked (the
margins are the constants below). Answers name objects as "red mug", with the character range of each name and the objects that
it names. Beside them there are phrases and wrong answers that name what is not there: heads learn from these to point at
nothing. The words themselves are in :mod:`flmm_sim.wording` and :mod:`flmm_sim.foreign_words`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from flmm_core.config import GroundingConfig
from flmm_core.data.dataset import MISTAKE, NO_ANSWERS, REFER, REFER_ABSENT, Span, Turn
from flmm_sim import wording
from flmm_sim.foreign_words import CHAT, UNKNOWN_WORDS
from flmm_sim.scene import COLORS, KIND_COLORS, KINDS, Scene, SceneObject

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
"""How many turns of each kind a picture gets."""
QUESTION_KINDS = tuple(kind for kind in TURNS if kind not in NO_ANSWERS)
"""Kinds with one right answer."""
REFER_PROMPT = GroundingConfig.refer_prompt

SIDE_MARGIN = 0.06
"""Least horizontal gap for left and right, in picture widths."""
AWAY_MARGIN = 0.07
"""Least gap for in front and behind, in metres of the view frame."""
NEXT_RATIO = 0.65
"""The nearest neighbour counts as "next to" when the second nearest is at least 1 / NEXT_RATIO times as far."""
NEAREST_RATIO = 0.75
"""A relation names the nearest thing on that side when the second nearest is at least 1 / NEAREST_RATIO times as far."""
UPPER_CASE_SHARE = 0.04
"""Share of questions in upper case."""

_HORIZONTAL = ((0.0, 0.38, "left"), (0.44, 0.56, "middle"), (0.62, 1.0, "right"))
"""Of the mask's centroid, in picture widths; in between nobody is asked."""
_VERTICAL = ((0.0, 0.37, "back"), (0.43, 0.53, "centre"), (0.59, 1.0, "front"))
"""Of the mask's centroid, in picture heights."""


_CONSONANTS, _VOWELS = tuple("bcdfghjklmnprstvwxz"), tuple("aeiouy")


def questions(
    scene: Scene,
    rng: np.random.Generator,
    *,
    turns: Mapping[str, int] = TURNS,
    unknown_words: Sequence[str] = UNKNOWN_WORDS,
) -> list[Turn]:
    """Different turns about a scene, as many of each kind as it has a clear answer for.

    Args:
        scene: what is asked about.
        rng: source of all choices.
        turns: most turns of each kind.
        unknown_words: things that the world does not have.
    """
    author = _Author(scene, rng, unknown_words)
    asked: list[Turn] = []
    for kind, most in turns.items():
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


class _Text:
    """An answer under construction."""

    def __init__(self) -> None:
        self.text = ""
        self.spans: list[Span] = []

    def say(self, words: str) -> _Text:
        self.text += words
        return self

    def name(self, words: str, objects: Sequence[int]) -> _Text:
        self.spans.append(Span(len(self.text), len(self.text) + len(words), tuple(objects)))
        return self.say(words)

    def turn(self, kind: str, question: str) -> Turn:
        answer = self.text if kind in (REFER, REFER_ABSENT) else self.text[0].upper() + self.text[1:]
        return Turn(kind, question, answer, tuple(self.spans))


class _Author:
    def __init__(self, scene: Scene, rng: np.random.Generator, unknown_words: Sequence[str]) -> None:
        self.rng = rng
        self.unknown_words = unknown_words
        self.objects = scene.objects
        height, width = scene.image.shape[:2]
        self.x = [float(np.nonzero(o.mask)[1].mean()) / width for o in scene.objects]
        self.y = [float(np.nonzero(o.mask)[0].mean()) / height for o in scene.objects]
        self.names = [o.name for o in scene.objects]
        self.kinds = [o.kind for o in scene.objects]
        self.colors = [o.color for o in scene.objects]

    def ask(self, kind: str) -> Turn | None:
        ask: Callable[[], Turn | None] = getattr(self, f"_{kind}")
        return ask()

    # --- one method for each kind of question -----------------------------------------------------------------------------

    def _list(self) -> Turn | None:
        text = self._enumeration(_Text().say("I see "), self.names)
        return text.say(".").turn("list", self._phrase(wording.LIST))

    def _enumeration(self, text: _Text, names: Sequence[str]) -> _Text:
        """Names in the order of kinds, then colours; equal things together; names beyond the scene's own mean nothing."""
        order = sorted(set(names), key=lambda name: (KINDS.index(name.split()[1]), COLORS.index(name.split()[0])))
        for position, name in enumerate(order):
            named = [index for index, own in enumerate(self.names) if own == name]
            text.say(_joint(position, len(order)))
            if len(named) > 1:
                text.name(f"{wording.NUMBERS[len(named)]} {_plural(name)}", named)
            else:
                text.say(_article(name)).name(name, named)
        return text

    def _where(self) -> Turn | None:
        index = self._pick_unique()
        if index is None:
            return None
        zone = self._zone(index)
        if zone is None:
            return None
        text = _Text().say("The ").name(self.names[index], [index]).say(f" is {zone}.")
        return text.turn("where", self._phrase(wording.WHERE, x=self._reference(index)))

    def _fetch(self) -> Turn | None:
        index, reference = self._pick_unique(), ""
        if index is not None:
            reference = self._reference(index)
        if index is None or self.rng.random() < 0.4:
            related = self._related_reference()
            if related is None:
                return None
            index, reference = related
        opening = str(self.rng.choice(list(wording.FETCH)))
        text = _Text().say(f"{opening} the ").name(self.names[index], [index]).say(".")
        return text.turn("fetch", self._phrase(wording.FETCH[opening], x=reference))

    def _relation(self) -> Turn | None:
        anchor = self._pick_unique()
        if anchor is None:
            return None
        if self.rng.random() < 0.3:
            return self._compare(anchor)
        relation = str(self.rng.choice(wording.RELATIONS))
        found = self._holders(relation, anchor)
        if found is None:
            return None
        near = sorted((_distance(self.objects[anchor], self.objects[i]), i) for i in found)
        if len(near) > 1 and near[0][0] > NEAREST_RATIO * near[1][0]:
            return None
        text = _Text()
        if near:
            text.say("the ").name(self.names[near[0][1]], [near[0][1]])
        else:
            text.say("nothing")
        text.say(f" is {wording.RELATION_WORDS[relation][0]} the ").name(self.names[anchor], [anchor]).say(".")
        words = str(self.rng.choice(wording.RELATION_WORDS[relation]))
        return text.turn("relation", self._phrase(wording.RELATION, r=words, x=self._reference(anchor)))

    def _compare(self, anchor: int) -> Turn | None:
        other = self._pick_unique()
        if other is None or other == anchor:
            return None
        axis = str(self.rng.choice(("left", "front")))
        holds = self._holds(axis, anchor, other)
        if holds is None:
            return None
        relation = axis if holds else wording.OPPOSITE[axis]
        text = _Text().say("The ").name(self.names[anchor], [anchor]).say(f" is {wording.RELATION_WORDS[relation][0]} the ")
        text.name(self.names[other], [other]).say(".")
        return text.turn("relation", self._phrase(wording.COMPARE[axis], x=self._reference(anchor), y=self._reference(other)))

    def _attribute(self) -> Turn | None:
        index = int(self.rng.integers(len(self.objects)))
        if self.rng.random() < 0.6:
            if self.kinds.count(self.kinds[index]) > 1:
                return None
            text = _Text().say("The ").name(self.kinds[index], [index]).say(f" is {self.colors[index]}.")
            return text.turn("attribute", self._phrase(wording.COLOR_OF, x=self._spoken(self.kinds[index])))
        if self.colors.count(self.colors[index]) > 1:
            return None
        text = _Text().say(f"It is {_article(self.names[index])}").name(self.names[index], [index]).say(".")
        return text.turn("attribute", self._phrase(wording.KIND_OF, c=self.colors[index]))

    def _count(self) -> Turn | None:
        index = int(self.rng.integers(len(self.objects)))
        choice = self.rng.random()
        if choice < 0.5:
            found, noun, spoken = self._of_kind(self.kinds[index]), self.kinds[index], self._spoken(self.kinds[index])
        elif choice < 0.8:
            found = [i for i, color in enumerate(self.colors) if color == self.colors[index]]
            noun = spoken = f"{self.colors[index]} object"
        else:
            found, noun, spoken = list(range(len(self.objects))), "object", "object"
        text = _Text().say("There is " if len(found) == 1 else "There are ")
        text.name(f"{wording.NUMBERS[len(found)]} {_plural(noun) if len(found) > 1 else noun}", found).say(".")
        return text.turn("count", self._phrase(wording.COUNT, x=_plural(spoken)))

    def _presence(self) -> Turn | None:
        index = int(self.rng.integers(len(self.objects)))
        by_name = self.rng.random() < 0.5
        noun = self.names[index] if by_name else self.kinds[index]
        found = [i for i in range(len(self.objects)) if (self.names if by_name else self.kinds)[i] == noun]
        text = _Text()
        if len(found) == 1:
            text.say(f"Yes, there is {_article(self.names[index])}").name(self.names[index], found)
        else:
            text.say("Yes, there are ").name(f"{wording.NUMBERS[len(found)]} {_plural(noun)}", found)
        spoken = f"{self.colors[index]} {self._spoken(self.kinds[index])}" if by_name else self._spoken(noun)
        return text.say(".").turn("presence", self._phrase(wording.PRESENCE, x=spoken))

    def _absence(self) -> Turn | None:
        color, kind = self._absent()
        noun = kind if color is None else f"{color} {kind}"
        spoken = self._spoken(kind) if color is None else f"{color} {self._spoken(kind)}"
        choice = self.rng.random()
        if choice < 0.5:
            text = _Text().say("No, there is no ").name(noun, [])
            return text.say(".").turn("absence", self._phrase(wording.PRESENCE, x=spoken))
        if choice < 0.65:
            text = _Text().say("There are no ").name(_plural(noun), [])
            return text.say(".").turn("absence", self._phrase(wording.COUNT, x=_plural(spoken)))
        templates = wording.WHERE if choice < 0.8 else wording.FETCH[str(self.rng.choice(list(wording.FETCH)))]
        text = _Text().say(f"I do not see {_article(noun)}").name(noun, [])
        return text.say(".").turn("absence", self._phrase(templates, x=spoken))

    def _unknown(self) -> Turn:
        rng, thing, choice = self.rng, self._unknown_thing(), self.rng.random()
        if choice < 0.3:
            question = self._phrase(wording.WHERE, x=thing)
        elif choice < 0.6:
            question = self._phrase(wording.FETCH[str(rng.choice(list(wording.FETCH)))], x=thing)
        elif choice < 0.75:
            question = self._phrase(wording.PRESENCE, x=thing)
        elif choice < 0.83:
            question = self._phrase(wording.COUNT, x=_plural(thing))
        elif choice < 0.9:
            question = self._phrase(wording.COLOR_OF, x=thing)
        else:
            words = wording.RELATION_WORDS[str(rng.choice(wording.RELATIONS))]
            question = self._phrase(wording.RELATION, r=str(rng.choice(words)), x=thing)
        return _Text().say("I do not know what that is.").turn("unknown", question)

    def _talk(self) -> Turn:
        rng = self.rng
        if rng.random() < 0.7:
            words = str(rng.choice(CHAT))
        elif rng.random() < 0.7:
            words = " ".join(self._nonsense() for _ in range(int(rng.integers(1, 5))))
        else:
            words = chr(ord("a") + int(rng.integers(26))) * int(rng.integers(1, 40))
        if rng.random() < 0.5:
            words = words[0].upper() + words[1:]
        if rng.random() < 0.5:
            words += str(rng.choice((".", "?", "!")))
        return _Text().say("I do not understand.").turn("talk", words)

    def _refer(self) -> Turn | None:
        text = _Text()
        for index in self.rng.permutation(len(self.objects))[: int(self.rng.integers(1, 5))].tolist():
            if self.names.count(self.names[index]) > 1:
                continue
            self._add_phrase(text, *self._named_alone(index))
        return text.turn(REFER, REFER_PROMPT) if text.spans else None

    def _refer_absent(self) -> Turn | None:
        text = _Text()
        for _ in range(int(self.rng.integers(1, 4))):
            if self.rng.random() < 0.7:
                words = self._absent_words()
                if words is not None:
                    self._add_phrase(text, words)
            elif (index := self._pick_unique()) is not None:
                self._add_phrase(text, *self._named_alone(index))
        return text.turn(REFER_ABSENT, REFER_PROMPT) if any(not span.objects for span in text.spans) else None

    def _named_alone(self, index: int) -> tuple[str, int]:
        """Words that mean one thing, this one or one that is related to another, and its index."""
        words = self._reference(index)
        related = self._related_reference() if self.rng.random() < 0.25 else None
        return (words, index) if related is None else (related[1], related[0])

    def _absent_words(self) -> str | None:
        """Words that mean nothing that is there: another thing, a thing of no such world, or a relation that does not hold."""
        choice = self.rng.random()
        if choice < 0.2:
            return self._unknown_thing()
        if choice < 0.6:
            return self._absent_reference()
        anchor = self._pick_unique()
        relation = str(self.rng.choice(wording.SIDES))
        found = None if anchor is None else self._holders(relation, anchor)
        if anchor is None or found is None:
            return None
        wrong = sorted(set(self.kinds) - {self.kinds[i] for i in (*found, anchor)})
        if not found and (not wrong or self.rng.random() < 0.4):
            noun = str(self.rng.choice(("object", "thing")))
        elif wrong:
            noun = self._spoken(str(self.rng.choice(wrong)))
        else:
            return None
        return f"{noun} {self.rng.choice(wording.RELATION_WORDS[relation])} the {self._reference(anchor)}"

    def _add_phrase(self, text: _Text, words: str, index: int | None = None) -> None:
        phrase = f"the {words}" if self.rng.random() < 0.5 else words
        text.say(" " if text.text else "").name(phrase, [] if index is None else [index]).say(".")

    def _mistake(self) -> Turn | None:
        color, kind = self._absent()
        name = f"{color or self.rng.choice(KIND_COLORS.get(kind, COLORS))} {kind}"
        choice = self.rng.random()
        if choice < 0.25:
            text = _Text().say("the ").name(name, []).say(f" is {self.rng.choice(list(wording.ZONES.values()))}")
            question = self._phrase(wording.WHERE, x=name)
        elif choice < 0.5:
            opening = str(self.rng.choice(list(wording.FETCH)))
            text = _Text().say(f"{opening} the ").name(name, [])
            question = self._phrase(wording.FETCH[opening], x=name)
        elif choice < 0.65:
            text = _Text().say(f"yes, there is {_article(name)}").name(name, [])
            question = self._phrase(wording.PRESENCE, x=name)
        elif choice < 0.8:
            text = self._enumeration(_Text().say("I see "), [*self.names, name])
            question = self._phrase(wording.LIST)
        else:
            anchor = self._pick_unique()
            if anchor is None:
                return None
            words = wording.RELATION_WORDS[str(self.rng.choice(wording.SIDES))]
            text = _Text().say("the ").name(name, []).say(f" is {words[0]} the ").name(self.names[anchor], [anchor])
            question = self._phrase(wording.RELATION, r=str(self.rng.choice(words)), x=self._reference(anchor))
        return text.say(".").turn(MISTAKE, question)

    # --- what holds in the scene ------------------------------------------------------------------------------------------

    def _zone(self, index: int) -> str | None:
        horizontal = [word for low, high, word in _HORIZONTAL if low <= self.x[index] <= high]
        vertical = [word for low, high, word in _VERTICAL if low <= self.y[index] <= high]
        return wording.ZONES[horizontal[0], vertical[0]] if horizontal and vertical else None

    def _holds(self, relation: str, index: int, anchor: int) -> bool | None:
        """Whether ``index`` is left of, right of, in front of or behind ``anchor``; None when it is too close to call."""
        if relation in ("left", "right"):
            gap, margin = self.x[anchor] - self.x[index], SIDE_MARGIN
        else:
            gap, margin = self.objects[anchor].away - self.objects[index].away, AWAY_MARGIN
        if abs(gap) < margin:
            return None
        return (gap > 0) == (relation in ("left", "front"))

    def _holders(self, relation: str, anchor: int) -> list[int] | None:
        """The objects that stand in ``relation`` to ``anchor``; None when one of them is too close to call."""
        others = [i for i in range(len(self.objects)) if i != anchor]
        if relation == "next":
            return self._next_to(anchor, others)
        held = [self._holds(relation, i, anchor) for i in others]
        return None if None in held else [i for i, holds in zip(others, held, strict=True) if holds]

    def _next_to(self, anchor: int, others: Sequence[int]) -> list[int] | None:
        distance = sorted((_distance(self.objects[anchor], self.objects[i]), i) for i in others)
        if len(distance) > 1 and distance[0][0] > NEXT_RATIO * distance[1][0]:
            return None
        return [distance[0][1]]

    def _of_kind(self, kind: str) -> list[int]:
        return [i for i, k in enumerate(self.kinds) if k == kind]

    def _absent(self) -> tuple[str | None, str]:
        """A colour and kind that is not there; often one whose kind, or whose colour, is."""
        while True:
            kind = str(self.rng.choice(KINDS if self.rng.random() < 0.6 else self.kinds))
            if self.rng.random() < 0.4:
                if kind not in self.kinds:
                    return None, kind
                continue
            allowed = KIND_COLORS.get(kind, COLORS)
            wanted = self.colors if self.rng.random() < 0.4 else allowed
            color = str(self.rng.choice(wanted))
            if color in allowed and f"{color} {kind}" not in self.names:
                return color, kind

    def _absent_reference(self) -> str:
        color, kind = self._absent()
        return self._spoken(kind) if color is None else f"{color} {self._spoken(kind)}"

    # --- how it is said ---------------------------------------------------------------------------------------------------

    def _pick_unique(self) -> int | None:
        index = int(self.rng.integers(len(self.objects)))
        return index if self.names.count(self.names[index]) == 1 else None

    def _spoken(self, kind: str) -> str:
        return str(self.rng.choice(wording.SYNONYMS[kind])) if kind in wording.SYNONYMS and self.rng.random() < 0.2 else kind

    def _reference(self, index: int) -> str:
        """Words that mean this object alone."""
        kind, color = self.kinds[index], self.colors[index]
        if self.kinds.count(kind) == 1 and self.rng.random() < 0.5:
            return self._spoken(kind)
        if self.colors.count(color) == 1 and self.rng.random() < 0.15:
            return f"{color} {self.rng.choice(('object', 'thing', 'one'))}"
        return f"{color} {self._spoken(kind)}"

    def _unknown_thing(self) -> str:
        """A thing that the world does not have, one in three with a colour."""
        thing = self._nonsense() if self.rng.random() < 0.4 else str(self.rng.choice(self.unknown_words))
        return f"{self.rng.choice(COLORS)} {thing}" if self.rng.random() < 0.3 else thing

    def _nonsense(self) -> str:
        """A word of one to three syllables that means nothing."""
        syllables = []
        for _ in range(int(self.rng.integers(1, 4))):
            end = str(self.rng.choice(_CONSONANTS)) if self.rng.random() < 0.4 else ""
            syllables.append(f"{self.rng.choice(_CONSONANTS)}{self.rng.choice(_VOWELS)}{end}")
        return "".join(syllables)

    def _related_reference(self) -> tuple[int, str] | None:
        """An object and words such as "mug left of the lemon" that mean it alone."""
        anchor = self._pick_unique()
        if anchor is None:
            return None
        relation = str(self.rng.choice(wording.RELATIONS))
        found = self._holders(relation, anchor)
        if not found:
            return None
        index = int(self.rng.choice(found))
        if len(found) == 1 and self.rng.random() < 0.4:
            noun = str(self.rng.choice(("object", "thing")))
        elif sum(self.kinds[i] == self.kinds[index] for i in found) == 1:
            noun = self._spoken(self.kinds[index])
        else:
            return None
        return index, f"{noun} {self.rng.choice(wording.RELATION_WORDS[relation])} the {self._reference(anchor)}"

    def _phrase(self, templates: Sequence[str], **slots: str) -> str:
        words = str(self.rng.choice(templates)).format(**slots)
        is_question = words.split()[0] in ("what", "where", "where's", "which", "is", "do", "can", "how")
        if self.rng.random() < 0.15:
            polite = ("robot, {}", "hey robot, {}") if is_question else ("please {}", "robot, {}", "{} please", "hey robot, {}")
            words = str(self.rng.choice(polite)).format(words)
        if self.rng.random() < 0.5:
            words = words[0].upper() + words[1:]
        if self.rng.random() < 0.75:
            words += "?" if is_question else "."
        return words


def _distance(a: SceneObject, b: SceneObject) -> float:
    return float(np.hypot(a.right - b.right, a.away - b.away))


def _article(noun: str) -> str:
    return "an " if noun[0] in "aeiou" else "a "


def _plural(noun: str) -> str:
    return noun + ("es" if noun.endswith(("x", "sh")) else "s")


def _joint(position: int, count: int) -> str:
    if position == 0:
        return ""
    return " and " if position == count - 1 else ", "
