"""How a person puts it: which thing is meant, by which of its names, in which words. Every choice falls here, by chance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flmm_sim import wording
from flmm_sim.scene import COLORS, KIND_COLORS, KINDS
from flmm_sim.scene_facts import SceneFacts

_CONSONANTS, _VOWELS = tuple("bcdfghjklmnprstvwxz"), tuple("aeiouy")
_QUESTION_WORDS = ("what", "where", "where's", "which", "is", "do", "can", "how")


class Speaker:
    """Somebody who looks at a scene and talks about it."""

    def __init__(self, facts: SceneFacts, rng: np.random.Generator, unknown_words: Sequence[str]) -> None:
        self.facts = facts
        self.rng = rng
        self.unknown_words = unknown_words

    def phrase(self, templates: Sequence[str], **slots: str) -> str:
        """One of the templates filled in, with courtesies, capitals and full stops as they come."""
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

    # --- what is there ----------------------------------------------------------------------------------------------------

    def pick(self) -> int:
        """Any object."""
        return int(self.rng.integers(len(self.facts)))

    def pick_unique(self) -> int | None:
        """An object whose name is its own, or None if the one that was looked at has a double."""
        index = self.pick()
        return index if self.facts.names.count(self.facts.names[index]) == 1 else None

    def spoken(self, kind: str) -> str:
        """A kind or a synonym of it."""
        return str(self.rng.choice(wording.SYNONYMS[kind])) if kind in wording.SYNONYMS and self.rng.random() < 0.2 else kind

    def reference(self, index: int) -> str:
        """Words that mean this object alone."""
        kind, color = self.facts.kinds[index], self.facts.colors[index]
        if self.facts.kinds.count(kind) == 1 and self.rng.random() < 0.5:
            return self.spoken(kind)
        if self.facts.colors.count(color) == 1 and self.rng.random() < 0.15:
            return f"{color} {self.rng.choice(('object', 'thing', 'one'))}"
        return f"{color} {self.spoken(kind)}"

    def related_reference(self) -> tuple[int, str] | None:
        """An object and words such as "mug left of the lemon" that mean it alone."""
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
        """Words such as "mug left of the lemon"."""
        return f"{noun} {self.rng.choice(wording.RELATION_WORDS[relation])} the {self.reference(anchor)}"

    def any_thing(self) -> str:
        """A word for anything."""
        return str(self.rng.choice(("object", "thing")))

    # --- what is not there ------------------------------------------------------------------------------------------------

    def absent(self) -> tuple[str | None, str]:
        """A colour and kind that is not there; often one whose kind, or whose colour, is."""
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
        """Words for what :meth:`absent` found."""
        return self.spoken(kind) if color is None else f"{color} {self.spoken(kind)}"

    def unknown_thing(self) -> str:
        """A thing that the world does not have, one in three with a colour."""
        thing = self.nonsense() if self.rng.random() < 0.4 else str(self.rng.choice(self.unknown_words))
        return f"{self.rng.choice(COLORS)} {thing}" if self.rng.random() < 0.3 else thing

    def nonsense(self) -> str:
        """A word of one to three syllables that means nothing."""
        syllables = []
        for _ in range(int(self.rng.integers(1, 4))):
            end = str(self.rng.choice(_CONSONANTS)) if self.rng.random() < 0.4 else ""
            syllables.append(f"{self.rng.choice(_CONSONANTS)}{self.rng.choice(_VOWELS)}{end}")
        return "".join(syllables)
