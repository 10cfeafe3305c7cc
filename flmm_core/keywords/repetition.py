"""What is shown of an answer: one that repeats itself in a loop is cut, and a thought without an answer is said to be one.

Small LMMs repeat themselves on words and images unlike their training data.
"""

from __future__ import annotations

import re

from flmm_core.lmm.trace import LmmTrace

LONGEST_LOOP = 8
"""Words of the longest sequence whose repetition is detected."""
TIMES = 3
"""Repetitions in a row that count as a loop."""

_WORD = re.compile(r"\w+")


CUT = " ..."
"""Replaces what an answer repeated."""


NO_ANSWER = "(no answer: "
"""Begins the text in place of an answer that the LMM did not come to."""


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


def shown_text(trace: LmmTrace, end: int) -> str:
    """Text for people.

    Args:
        trace: of the answer.
        end: one past the last character that is shown.
    """
    if trace.thought_ids and not trace.text:
        if trace.ended:
            return f"{NO_ANSWER}the LMM ended within its thought)"
        return f"{NO_ANSWER}the LMM was still thinking at max_new_tokens, {len(trace.thought_ids)} tokens)"
    return trace.text if end == len(trace.text) else trace.text[:end] + CUT
