"""Answers that run in circles: small LMMs do so on words and images that they have never seen the like of."""

from __future__ import annotations

import re

LONGEST_LOOP = 8
"""Words of the longest thing whose repetition is noticed."""
TIMES = 3
"""How often in a row a thing must be said to count as a loop."""

_WORD = re.compile(r"\w+")


CUT = " ..."
"""Stands for what an answer repeated."""


def loop_start(text: str) -> int:
    """Where an answer begins to say what it has just said, again and again.

    Args:
        text: an answer that was still going on at the limit of tokens; one that ended by itself may repeat what it likes.

    Returns:
        The character behind the first saying of what is said :data:`TIMES` times in a row, or the length of ``text``.
    """
    found = list(_WORD.finditer(text))
    words = [match[0].lower() for match in found]
    for start in range(len(words)):
        for length in range(1, min(LONGEST_LOOP, (len(words) - start) // TIMES) + 1):
            once = words[start : start + length]
            if words[start : start + length * TIMES] == once * TIMES:
                return found[start + length - 1].end()
    return len(text)
