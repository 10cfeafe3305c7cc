"""Words that an LMM lists as things of its answer, as character ranges of the answer."""

from __future__ import annotations

import re

Range = tuple[int, int]

MOST_WORDS, MOST_CHARACTERS = 6, 40
"""Longest name of a thing; what is longer repeats the answer."""

_SEPARATORS = re.compile(r"[\n\r,;|、，；،•]|(?:^|(?<=\s))(?:[-*]|\d+[.)])(?=\s)")
_UNSPACED = re.compile(r"[\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff]")
"""Thai, Lao, Japanese, Chinese and Korean: words stand together, or are joined by particles."""


def named_ranges(answer: str, listed: str) -> list[Range]:
    """Where an answer says the things of a list.

    Case is ignored, words must be whole where the script separates them, and every occurrence counts once, for the longest
    thing that covers it.

    Args:
        answer: the LMM's answer.
        listed: things, separated by commas or as a list of lines.

    Returns:
        Half-open character ranges, in reading order, none overlapping.
    """
    pieces = {piece for piece in (re.sub(r"^[\W_]+|[\W_]+$", "", part) for part in _SEPARATORS.split(listed)) if piece}
    found: list[Range] = []
    for piece in sorted(pieces, key=lambda piece: (-len(piece), piece)):
        words = piece.split()
        if len(words) > MOST_WORDS or len(piece) > MOST_CHARACTERS or not any(sign.isalpha() for sign in piece):
            continue
        body = r"\s+".join(map(re.escape, words))
        before = "" if _UNSPACED.match(piece[0]) else r"(?<!\w)"
        behind = "" if _UNSPACED.match(piece[-1]) else r"(?!\w)"
        for match in re.finditer(before + body + behind, answer, re.IGNORECASE):
            if all(match.end() <= start or end <= match.start() for start, end in found):
                found.append(match.span())
    return sorted(found)
