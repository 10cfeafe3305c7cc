"""Questions about a scene and their true answers, in the ways people talk to robots.

Every answer is decided by the scene alone: a question whose answer hangs on a few pixels or centimetres is not asked (the
margins are the constants below). Answers name objects as "red mug", with the character range of each name and the objects that
it names. The words themselves are in :mod:`flmm_sim.wording`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from flmm_core.config import GroundingConfig
from flmm_core.data.dataset import REFER, Span, Turn
from flmm_sim import wording
from flmm_sim.scene import COLORS, KIND_COLORS, KINDS, Scene, SceneObject

QUESTION_KINDS = ("list", "where", "fetch", "relation", "attribute", "count", "presence", "absence")
"""Kinds with one right answer."""
REFER_PROMPT = GroundingConfig.refer_prompt

ORDER_MARGIN = 0.02
"""Least gap between neighbours of a left-to-right enumeration, in picture widths."""
SIDE_MARGIN = 0.05
"""Least horizontal gap for left and right, in picture widths."""
AWAY_MARGIN = 0.05
"""Least gap for in front and behind, in metres of the view frame."""
NEXT_RATIO = 0.65
"""The nearest neighbour counts as "next to" when the second nearest is at least 1 / NEXT_RATIO times as far."""
MAX_ENUMERATION = 3
"""Most objects that the answer to a relation names."""

_HORIZONTAL = ((0.0, 0.38, "left"), (0.43, 0.57, "middle"), (0.62, 1.0, "right"))
"""Picture widths."""
_DEPTH = ((-9.0, -0.09, "front"), (-0.055, 0.055, "centre"), (0.09, 9.0, "back"))
"""Metres away from the table's centre, view frame."""


def questions(scene: Scene, rng: np.random.Generator, *, per_kind: int = 3) -> list[Turn]:
    """Up to ``per_kind`` different turns of every kind that the scene has a clear answer for."""
    author = _Author(scene, rng)
    turns: list[Turn] = []
    for kind in (*QUESTION_KINDS, REFER):
        seen: set[str] = set()
        for _ in range(per_kind * 3):
            turn = author.ask(kind)
            said = "" if turn is None else (turn.answer if kind == REFER else turn.question).lower()
            if turn is not None and said not in seen:
                seen.add(said)
                turns.append(turn)
            if len(seen) == per_kind:
                break
    return turns


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
        answer = self.text if kind == REFER else self.text[0].upper() + self.text[1:]
        return Turn(kind, question, answer, tuple(self.spans))


class _Author:
    def __init__(self, scene: Scene, rng: np.random.Generator) -> None:
        self.rng = rng
        self.objects = scene.objects
        width = scene.image.shape[1]
        self.x = [float(np.nonzero(o.mask)[1].mean()) / width for o in scene.objects]
        self.names = [o.name for o in scene.objects]
        self.kinds = [o.kind for o in scene.objects]
        self.colors = [o.color for o in scene.objects]

    def ask(self, kind: str) -> Turn | None:
        ask: Callable[[], Turn | None] = getattr(self, f"_{kind}")
        return ask()

    # --- one method for each kind of question -----------------------------------------------------------------------------

    def _list(self) -> Turn | None:
        order = self._left_to_right(range(len(self.objects)))
        if order is None:
            return None
        text = _Text().say("I see ")
        named: set[str] = set()
        for position, index in enumerate(order):
            text.say(_joint(position, len(order)))
            text.say("another " if self.names[index] in named else _article(self.names[index]))
            text.name(self.names[index], [index])
            named.add(self.names[index])
        return text.say(".").turn("list", self._phrase(wording.LIST))

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
        if found is None or len(found) > MAX_ENUMERATION:
            return None
        order = self._left_to_right(found)
        if order is None:
            return None
        text = _Text()
        for position, index in enumerate(order):
            text.say(_joint(position, len(order)) + "the ").name(self.names[index], [index])
        text.say(
            ("nothing" if not order else "")
            + (" are " if len(order) > 1 else " is ")
            + wording.RELATION_WORDS[relation][0]
            + " the "
        )
        text.name(self.names[anchor], [anchor]).say(".")
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
            return _Text().say(f"No, there is no {noun}.").turn("absence", self._phrase(wording.PRESENCE, x=spoken))
        if choice < 0.65:
            return _Text().say(f"There are no {_plural(noun)}.").turn("absence", self._phrase(wording.COUNT, x=_plural(spoken)))
        templates = wording.WHERE if choice < 0.8 else wording.FETCH[str(self.rng.choice(list(wording.FETCH)))]
        return _Text().say(f"I do not see {_article(noun)}{noun}.").turn("absence", self._phrase(templates, x=spoken))

    def _refer(self) -> Turn | None:
        text = _Text()
        for index in self.rng.permutation(len(self.objects))[: int(self.rng.integers(1, 5))].tolist():
            if self.names.count(self.names[index]) > 1:
                continue
            named, words = index, self._reference(index)
            related = self._related_reference() if self.rng.random() < 0.25 else None
            if related is not None:
                named, words = related
            text.say(" " if text.text else "").name(f"the {words}" if self.rng.random() < 0.5 else words, [named]).say(".")
        return text.turn(REFER, REFER_PROMPT) if text.spans else None

    # --- what holds in the scene ------------------------------------------------------------------------------------------

    def _zone(self, index: int) -> str | None:
        horizontal = [word for low, high, word in _HORIZONTAL if low <= self.x[index] <= high]
        depth = [word for low, high, word in _DEPTH if low <= self.objects[index].away <= high]
        return wording.ZONES[horizontal[0], depth[0]] if horizontal and depth else None

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

    def _left_to_right(self, indices: Sequence[int] | range) -> list[int] | None:
        order = sorted(indices, key=lambda i: self.x[i])
        close = any(self.x[b] - self.x[a] < ORDER_MARGIN for a, b in itertools.pairwise(order))
        return None if close else order

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
