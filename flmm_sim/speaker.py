"""Random choices of a person's words: which object is meant, by which of its names, in which phrasing."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flmm_sim import wording
from flmm_sim.scene import COLORS, KIND_COLORS, KINDS
from flmm_sim.scene_facts import SceneFacts

_CONSONANTS, _VOWELS = tuple("bcdfghjklmnprstvwxz"), tuple("aeiouy")
_QUESTION_WORDS = ("what", "where", "where's", "which", "is", "do", "can", "how")


class Speaker:
    """A simulated person who talks about a scene."""

    def __init__(self, facts: SceneFacts, rng: np.random.Generator, unknown_words: Sequence[str]) -> None:
        self.facts = facts
        self.rng = rng
        self.unknown_words = unknown_words

    def phrase(self, templates: Sequence[str], **slots: str) -> str:
        """One of the templates filled in, with random politeness, capitalisation and punctuation."""
        words = str(self.rng.choice(templates)).format(**slots)
        is_question = words.split()[0] in _QUESTION_WORDS
        if self.rng.random() < 0.15:
            polite = ("robot, {}", "hey robot, {}") if is_question else ("please {}", "robot, {}", "{} please", "hey robot, {}")
            words = str(self.rng.choice(polite)).format(words)
        if self.rng.random() < 0.5:
            words = words[0].upper() + words[1:]
        if self.rng.random() < 0.75:
            words += "?" if is_question else "."
        return words

    # --- present objects ----------------------------------------------------------------------------------------------------

    def pick(self) -> int:
        """Index of a random object."""
        return int(self.rng.integers(len(self.facts)))

    def pick_unique(self) -> int | None:
        """Index of a random object with a unique name, or None if the sampled one has a duplicate."""
        index = self.pick()
        return index if self.facts.names.count(self.facts.names[index]) == 1 else None

    def spoken(self, kind: str) -> str:
        """A kind or a synonym of it."""
        return str(self.rng.choice(wording.SYNONYMS[kind])) if kind in wording.SYNONYMS and self.rng.random() < 0.2 else kind

    def reference(self, index: int) -> str:
        """An unambiguous expression for an object."""
        kind, color = self.facts.kinds[index], self.facts.colors[index]
        if self.facts.kinds.count(kind) == 1 and self.rng.random() < 0.5:
            return self.spoken(kind)
        if self.facts.colors.count(color) == 1 and self.rng.random() < 0.15:
            return f"{color} {self.rng.choice(('object', 'thing', 'one'))}"
        return f"{color} {self.spoken(kind)}"

    def related_reference(self) -> tuple[int, str] | None:
        """An object and an unambiguous expression such as "mug left of the lemon"; None if the sampled one is ambiguous."""
        anchor = self.pick_unique()
        if anchor is None:
            return None
        relation = str(self.rng.choice(wording.RELATIONS))
        found = self.facts.holders(relation, anchor)
        if not found:
            return None
        index = int(self.rng.choice(found))
        if len(found) == 1 and self.rng.random() < 0.4:
            noun = self.any_thing()
        elif sum(self.facts.kinds[i] == self.facts.kinds[index] for i in found) == 1:
            noun = self.spoken(self.facts.kinds[index])
        else:
            return None
        return index, self.related(noun, relation, anchor)

    def related(self, noun: str, relation: str, anchor: int) -> str:
        """An expression such as "mug left of the lemon"."""
        return f"{noun} {self.rng.choice(wording.RELATION_WORDS[relation])} the {self.reference(anchor)}"

    def any_thing(self) -> str:
        """A word for any object."""
        return str(self.rng.choice(("object", "thing")))

    # --- absent objects --------------------------------------------------------------------------------------------------

    def absent(self) -> tuple[str | None, str]:
        """Colour and kind of an absent object; often its kind or its colour is present."""
        while True:
            kind = str(self.rng.choice(KINDS if self.rng.random() < 0.6 else self.facts.kinds))
            if self.rng.random() < 0.4:
                if kind not in self.facts.kinds:
                    return None, kind
                continue
            allowed = KIND_COLORS.get(kind, COLORS)
            wanted = self.facts.colors if self.rng.random() < 0.4 else allowed
            color = str(self.rng.choice(wanted))
            if color in allowed and f"{color} {kind}" not in self.facts.names:
                return color, kind

    def spoken_absent(self, color: str | None, kind: str) -> str:
        """Words for a result of :meth:`absent`."""
        return self.spoken(kind) if color is None else f"{color} {self.spoken(kind)}"

    def unknown_thing(self) -> str:
        """An object that is unknown in this world, one in three with a colour."""
        thing = self.nonsense() if self.rng.random() < 0.4 else str(self.rng.choice(self.unknown_words))
        return f"{self.rng.choice(COLORS)} {thing}" if self.rng.random() < 0.3 else thing

    def nonsense(self) -> str:
        """A meaningless word of one to three syllables."""
        syllables = []
        for _ in range(int(self.rng.integers(1, 4))):
            end = str(self.rng.choice(_CONSONANTS)) if self.rng.random() < 0.4 else ""
            syllables.append(f"{self.rng.choice(_CONSONANTS)}{self.rng.choice(_VOWELS)}{end}")
        return "".join(syllables)
