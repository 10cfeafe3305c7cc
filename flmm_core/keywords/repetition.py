"""Answers that repeat themselves in a loop, as small LMMs do on words and images unlike their training data."""

from __future__ import annotations

import re

LONGEST_LOOP = 8
"""Words of the longest sequence whose repetition is detected."""
TIMES = 3
"""Repetitions in a row that count as a loop."""

_WORD = re.compile(r"\w+")


CUT = " ..."
"""Replaces what an answer repeated."""


def loop_start(text: str) -> int:
    """Where an answer begins to repeat itself.

    Args:
        text: an answer that reached its length limit; one that the LMM ended itself is not cut.

    Returns:
        The character behind the first occurrence of what occurs :data:`TIMES` times in a row, or the length of ``text``.
    """
    found = list(_WORD.finditer(text))
    words = [match[0].lower() for match in found]
    for start in range(len(words)):
        for length in range(1, min(LONGEST_LOOP, (len(words) - start) // TIMES) + 1):
            once = words[start : start + length]
            if words[start : start + length * TIMES] == once * TIMES:
                return found[start + length - 1].end()
    return len(text)
