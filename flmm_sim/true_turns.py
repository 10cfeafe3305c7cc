"""Questions about a scene and their true answers, one method for each kind of question.

Answers name objects as "red mug". A method returns None when what it happened to pick has no clear answer.
"""

from __future__ import annotations

from flmm_core.data.samples import Turn
from flmm_sim import wording
from flmm_sim.answer_text import AnswerText, article, plural
from flmm_sim.foreign_words import CHAT
from flmm_sim.scene_facts import NEAREST_RATIO
from flmm_sim.turn_writer import TurnWriter

UNKNOWN_ANSWER = "I do not know what that is."
"""Answer to a question about an object that is unknown in this world."""
TALK_ANSWER = "I do not understand."
"""Answer to words that are not a question about the table."""


class TrueTurns(TurnWriter):
    """Writes a speaker's questions with answers that follow from the facts."""

    def _list(self) -> Turn:
        text = AnswerText("I see ").name_all(self.facts.names, self.facts.names)
        return text.say(".").turn("list", self.speaker.phrase(wording.LIST))

    def _where(self) -> Turn | None:
        index = self.speaker.pick_unique()
        if index is None:
            return None
        zone = self.facts.zone(index)
        if zone is None:
            return None
        text = AnswerText("The ").name(self.facts.names[index], [index]).say(f" is {zone}.")
        return text.turn("where", self.speaker.phrase(wording.WHERE, x=self.speaker.reference(index)))

    def _fetch(self) -> Turn | None:
        index, reference = self.speaker.pick_unique(), ""
        if index is not None:
            reference = self.speaker.reference(index)
        if index is None or self.rng.random() < 0.4:
            related = self.speaker.related_reference()
            if related is None:
                return None
            index, reference = related
        opening = str(self.rng.choice(list(wording.FETCH)))
        text = AnswerText(f"{opening} the ").name(self.facts.names[index], [index]).say(".")
        return text.turn("fetch", self.speaker.phrase(wording.FETCH[opening], x=reference))

    def _relation(self) -> Turn | None:
        anchor = self.speaker.pick_unique()
        if anchor is None:
            return None
        if self.rng.random() < 0.3:
            return self._compare(anchor)
        relation = str(self.rng.choice(wording.RELATIONS))
        found = self.facts.holders(relation, anchor)
        if found is None:
            return None
        near = self.facts.clearly_nearest(anchor, found, NEAREST_RATIO)
        if near is None:
            return None
        text = AnswerText()
        if near:
            text.say("the ").name(self.facts.names[near[0]], near)
        else:
            text.say("nothing")
        text.say(f" is {wording.RELATION_WORDS[relation][0]} the ").name(self.facts.names[anchor], [anchor]).say(".")
        words = str(self.rng.choice(wording.RELATION_WORDS[relation]))
        return text.turn("relation", self.speaker.phrase(wording.RELATION, r=words, x=self.speaker.reference(anchor)))

    def _compare(self, anchor: int) -> Turn | None:
        other = self.speaker.pick_unique()
        if other is None or other == anchor:
            return None
        axis = str(self.rng.choice(("left", "front")))
        holds = self.facts.holds(axis, anchor, other)
        if holds is None:
            return None
        relation = axis if holds else wording.OPPOSITE[axis]
        text = AnswerText("The ").name(self.facts.names[anchor], [anchor])
        text.say(f" is {wording.RELATION_WORDS[relation][0]} the ").name(self.facts.names[other], [other]).say(".")
        one, two = self.speaker.reference(anchor), self.speaker.reference(other)
        return text.turn("relation", self.speaker.phrase(wording.COMPARE[axis], x=one, y=two))

    def _attribute(self) -> Turn | None:
        facts, index = self.facts, self.speaker.pick()
        if self.rng.random() < 0.6:
            if facts.kinds.count(facts.kinds[index]) > 1:
                return None
            text = AnswerText("The ").name(facts.kinds[index], [index]).say(f" is {facts.colors[index]}.")
            spoken = self.speaker.spoken(facts.kinds[index])
            return text.turn("attribute", self.speaker.phrase(wording.COLOR_OF, x=spoken))
        if facts.colors.count(facts.colors[index]) > 1:
            return None
        text = AnswerText(f"It is {article(facts.names[index])}").name(facts.names[index], [index]).say(".")
        return text.turn("attribute", self.speaker.phrase(wording.KIND_OF, c=facts.colors[index]))

    def _count(self) -> Turn:
        facts, index = self.facts, self.speaker.pick()
        choice = self.rng.random()
        if choice < 0.5:
            noun = facts.kinds[index]
            found, spoken = facts.of_kind(noun), self.speaker.spoken(noun)
        elif choice < 0.8:
            found = facts.of_color(facts.colors[index])
            noun = spoken = f"{facts.colors[index]} object"
        else:
            found, noun, spoken = list(range(len(facts))), "object", "object"
        text = AnswerText("There is " if len(found) == 1 else "There are ")
        text.name(f"{wording.NUMBERS[len(found)]} {plural(noun) if len(found) > 1 else noun}", found).say(".")
        return text.turn("count", self.speaker.phrase(wording.COUNT, x=plural(spoken)))

    def _presence(self) -> Turn:
        facts, index = self.facts, self.speaker.pick()
        by_name = self.rng.random() < 0.5
        noun = facts.names[index] if by_name else facts.kinds[index]
        found = facts.of_name(noun) if by_name else facts.of_kind(noun)
        text = AnswerText()
        if len(found) == 1:
            text.say(f"Yes, there is {article(facts.names[index])}").name(facts.names[index], found)
        else:
            text.say("Yes, there are ").name(f"{wording.NUMBERS[len(found)]} {plural(noun)}", found)
        spoken = self.speaker.spoken(facts.kinds[index])
        spoken = f"{facts.colors[index]} {spoken}" if by_name else spoken
        return text.say(".").turn("presence", self.speaker.phrase(wording.PRESENCE, x=spoken))

    def _absence(self) -> Turn:
        color, kind = self.speaker.absent()
        noun = kind if color is None else f"{color} {kind}"
        spoken = self.speaker.spoken_absent(color, kind)
        choice = self.rng.random()
        if choice < 0.5:
            text = AnswerText("No, there is no ").name(noun, [])
            return text.say(".").turn("absence", self.speaker.phrase(wording.PRESENCE, x=spoken))
        if choice < 0.65:
            text = AnswerText("There are no ").name(plural(noun), [])
            return text.say(".").turn("absence", self.speaker.phrase(wording.COUNT, x=plural(spoken)))
        templates = wording.WHERE if choice < 0.8 else wording.FETCH[str(self.rng.choice(list(wording.FETCH)))]
        text = AnswerText(f"I do not see {article(noun)}").name(noun, [])
        return text.say(".").turn("absence", self.speaker.phrase(templates, x=spoken))

    def _unknown(self) -> Turn:
        rng, thing, choice = self.rng, self.speaker.unknown_thing(), self.rng.random()
        if choice < 0.3:
            question = self.speaker.phrase(wording.WHERE, x=thing)
        elif choice < 0.6:
            question = self.speaker.phrase(wording.FETCH[str(rng.choice(list(wording.FETCH)))], x=thing)
        elif choice < 0.75:
            question = self.speaker.phrase(wording.PRESENCE, x=thing)
        elif choice < 0.83:
            question = self.speaker.phrase(wording.COUNT, x=plural(thing))
        elif choice < 0.9:
            question = self.speaker.phrase(wording.COLOR_OF, x=thing)
        else:
            words = wording.RELATION_WORDS[str(rng.choice(wording.RELATIONS))]
            question = self.speaker.phrase(wording.RELATION, r=str(rng.choice(words)), x=thing)
        return AnswerText(UNKNOWN_ANSWER).turn("unknown", question)

    def _talk(self) -> Turn:
        rng = self.rng
        if rng.random() < 0.7:
            words = str(rng.choice(CHAT))
        elif rng.random() < 0.7:
            words = " ".join(self.speaker.nonsense() for _ in range(int(rng.integers(1, 5))))
        else:
            words = chr(ord("a") + int(rng.integers(26))) * int(rng.integers(1, 40))
        if rng.random() < 0.5:
            words = words[0].upper() + words[1:]
        if rng.random() < 0.5:
            words += str(rng.choice((".", "?", "!")))
        return AnswerText(TALK_ANSWER).turn("talk", words)
