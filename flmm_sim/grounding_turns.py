"""Turns for training the grounding heads alone: phrases of refer mode, and wrong answers.

From the names in them that mean nothing that is there, heads learn to point at nothing.
"""

from __future__ import annotations

from flmm_core.config import GroundingConfig
from flmm_core.data.samples import MISTAKE, REFER, REFER_ABSENT, Turn
from flmm_sim import wording
from flmm_sim.answer_text import AnswerText, article
from flmm_sim.scene import COLORS, KIND_COLORS
from flmm_sim.turn_writer import TurnWriter

REFER_PROMPT = GroundingConfig.refer_prompt


class GroundingTurns(TurnWriter):
    """Writes a speaker's phrases, and answers that contradict the facts."""

    def _refer(self) -> Turn | None:
        text = AnswerText()
        for index in self.rng.permutation(len(self.facts))[: int(self.rng.integers(1, 5))].tolist():
            if self.facts.names.count(self.facts.names[index]) > 1:
                continue
            self._add_phrase(text, *self._named_alone(index))
        return text.turn(REFER, REFER_PROMPT) if text.spans else None

    def _refer_absent(self) -> Turn | None:
        text = AnswerText()
        for _ in range(int(self.rng.integers(1, 4))):
            if self.rng.random() < 0.7:
                words = self._absent_words()
                if words is not None:
                    self._add_phrase(text, words)
            elif (index := self.speaker.pick_unique()) is not None:
                self._add_phrase(text, *self._named_alone(index))
        return text.turn(REFER_ABSENT, REFER_PROMPT) if any(not span.objects for span in text.spans) else None

    def _named_alone(self, index: int) -> tuple[str, int]:
        """An unambiguous expression for an object, perhaps by its relation to another one, and the object's index."""
        words = self.speaker.reference(index)
        related = self.speaker.related_reference() if self.rng.random() < 0.25 else None
        return (words, index) if related is None else (related[1], related[0])

    def _absent_words(self) -> str | None:
        """An expression without an object: an absent object, an unknown one, or a relation that does not hold."""
        choice = self.rng.random()
        if choice < 0.2:
            return self.speaker.unknown_thing()
        if choice < 0.6:
            return self.speaker.spoken_absent(*self.speaker.absent())
        anchor = self.speaker.pick_unique()
        relation = str(self.rng.choice(wording.SIDES))
        found = None if anchor is None else self.facts.holders(relation, anchor)
        if anchor is None or found is None:
            return None
        wrong = sorted(set(self.facts.kinds) - {self.facts.kinds[i] for i in (*found, anchor)})
        if not found and (not wrong or self.rng.random() < 0.4):
            noun = self.speaker.any_thing()
        elif wrong:
            noun = self.speaker.spoken(str(self.rng.choice(wrong)))
        else:
            return None
        return self.speaker.related(noun, relation, anchor)

    def _add_phrase(self, text: AnswerText, words: str, index: int | None = None) -> None:
        phrase = f"the {words}" if self.rng.random() < 0.5 else words
        text.say(" " if text.text else "").name(phrase, [] if index is None else [index]).say(".")

    def _mistake(self) -> Turn | None:
        color, kind = self.speaker.absent()
        name = f"{color or self.rng.choice(KIND_COLORS.get(kind, COLORS))} {kind}"
        choice = self.rng.random()
        if choice < 0.25:
            text = AnswerText("the ").name(name, []).say(f" is {self.rng.choice(list(wording.ZONES.values()))}")
            question = self.speaker.phrase(wording.WHERE, x=name)
        elif choice < 0.5:
            opening = str(self.rng.choice(list(wording.FETCH)))
            text = AnswerText(f"{opening} the ").name(name, [])
            question = self.speaker.phrase(wording.FETCH[opening], x=name)
        elif choice < 0.65:
            text = AnswerText(f"yes, there is {article(name)}").name(name, [])
            question = self.speaker.phrase(wording.PRESENCE, x=name)
        elif choice < 0.8:
            text = AnswerText("I see ").name_all([*self.facts.names, name], self.facts.names)
            question = self.speaker.phrase(wording.LIST)
        else:
            anchor = self.speaker.pick_unique()
            if anchor is None:
                return None
            words = wording.RELATION_WORDS[str(self.rng.choice(wording.SIDES))]
            text = AnswerText("the ").name(name, []).say(f" is {words[0]} the ").name(self.facts.names[anchor], [anchor])
            related = str(self.rng.choice(words))
            question = self.speaker.phrase(wording.RELATION, r=related, x=self.speaker.reference(anchor))
        return text.say(".").turn(MISTAKE, question)
