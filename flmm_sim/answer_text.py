"""Composes the text of answers and records the character range of each name. This file is independent of scenes."""

from __future__ import annotations

from collections.abc import Sequence

from flmm_core.data.samples import REFER, REFER_ABSENT, Span, Turn
from flmm_sim import wording
from flmm_sim.scene import COLORS, KINDS


class AnswerText:
    """An answer under construction."""

    def __init__(self, words: str = "") -> None:
        self.text = words
        self.spans: list[Span] = []

    def say(self, words: str) -> AnswerText:
        """Add words that name no object."""
        self.text += words
        return self

    def name(self, words: str, objects: Sequence[int]) -> AnswerText:
        """Add a name of some objects, or of an absent object."""
        self.spans.append(Span(len(self.text), len(self.text) + len(words), tuple(objects)))
        return self.say(words)

    def name_all(self, names: Sequence[str], there: Sequence[str]) -> AnswerText:
        """Add an enumeration in the order of kinds, then colours; equal objects together, as in "two red mugs".

        Args:
            names: what to name, each "colour kind".
            there: the names of the scene's objects; a name that is not among them means nothing.
        """
        order = sorted(set(names), key=lambda name: (KINDS.index(name.split()[1]), COLORS.index(name.split()[0])))
        for position, name in enumerate(order):
            named = [index for index, present in enumerate(there) if present == name]
            self.say(_joint(position, len(order)))
            if len(named) > 1:
                self.name(f"{wording.NUMBERS[len(named)]} {plural(name)}", named)
            else:
                self.say(article(name)).name(name, named)
        return self

    def turn(self, kind: str, question: str) -> Turn:
        """A turn with the question and the composed answer; sentences begin with a capital letter."""
        answer = self.text if kind in (REFER, REFER_ABSENT) else self.text[0].upper() + self.text[1:]
        return Turn(kind, question, answer, tuple(self.spans))


def article(noun: str) -> str:
    """The indefinite article of a noun, followed by a space."""
    return "an " if noun[0] in "aeiou" else "a "


def plural(noun: str) -> str:
    """Plural of a noun: mugs, boxes."""
    return noun + ("es" if noun.endswith(("x", "sh")) else "s")


def _joint(position: int, count: int) -> str:
    if position == 0:
        return ""
    return " and " if position == count - 1 else ", "
