"""Grammar of spoken commands about the table-top, for speech recognisers (JSGF)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from flmm_sim import wording
from flmm_sim.scene import COLORS, KINDS


def grammar(knows: Callable[[str], bool], wake_word: str = "") -> str:
    """The grammar of the shipped world's questions and orders.

    Args:
        knows: whether the recogniser knows a word; unknown words are left out.
        wake_word: words at the beginning of each command; empty for none.

    Raises:
        ValueError: the recogniser does not know the wake word.
    """
    if unknown := [word for word in wake_word.lower().split() if not knows(word)]:
        raise ValueError(f"wake_word: expected words that the recogniser knows, got {' '.join(unknown)!r}")
    names = {name for kind in KINDS for name in (kind, *wording.SYNONYMS.get(kind, ()))}
    relations = {words for group in wording.RELATION_WORDS.values() for words in group}
    fetch = [template for group in wording.FETCH.values() for template in group]
    compare = [template for group in wording.COMPARE.values() for template in group]
    templates = (
        *wording.LIST, *wording.WHERE, *fetch, *wording.RELATION, *compare, *wording.COLOR_OF, *wording.KIND_OF,
        *wording.PRESENCE,
    )  # fmt: skip
    slots = {"{x}": "<thing>", "{y}": "<thing>", "{r}": "<relation>", "{c}": "<colour>"}
    commands = {_filled(template, slots) for template in templates}
    rules = {
        "colour": sorted(COLORS),
        "name": sorted(names),
        "relation": sorted(relations),
        "sentence": sorted(commands),
    }
    lines = ["#JSGF V1.0;", "grammar table_top;"]
    for rule, choices in rules.items():
        lines.append(f"<{rule}> = {' | '.join(_known(choices, knows))};")
    lines.append("<thing> = [<colour>] <name>;")
    lines.append(f"public <command> = {wake_word.lower()} <sentence>;" if wake_word else "public <command> = <sentence>;")
    return "\n".join(lines) + "\n"


def _filled(template: str, slots: dict[str, str]) -> str:
    for slot, rule in slots.items():
        template = template.replace(slot, rule)
    return template


def _known(choices: Iterable[str], knows: Callable[[str], bool]) -> list[str]:
    return [choice for choice in choices if all(word[0] == "<" or knows(word) for word in choice.split())]
