"""Whether the rules for noun chunks, which are those of English, fit an answer."""

from __future__ import annotations

import re
from collections.abc import Sequence

from flmm_core.keywords.noun_chunks import CLOSED_WORDS, FUNCTION_WORDS, rule_noun_chunks

Range = tuple[int, int]

LEAST_SHARE = 1 / 6
"""Least share of function words in an English sentence."""
SHORT = 4
"""So many words in ASCII count as English: function words may be missing ("red mug", "a mug and a lemon")."""

_WORD = re.compile(r"[^\W\d_]+")


def rules_fit(text: str, chunks: Sequence[Range]) -> bool:
    """Whether the noun chunks of an answer are the things that it names.

    They are not where the answer is not English, or where it has no chunk and yet a word that could name something.

    Args:
        text: the answer.
        chunks: its noun chunks.
    """
    words = [word.lower() for word in _WORD.findall(text)]
    if not words:
        return True
    if not _is_english(words):
        return False
    absent = rule_noun_chunks(re.sub(r"\bno\b", "a", text, flags=re.IGNORECASE))  # "no banana" is no chunk, but understood
    return bool(chunks or absent) or all(word in CLOSED_WORDS for word in words)


def _is_english(words: Sequence[str]) -> bool:
    """By the share of English function words, of which other languages know a few."""
    if len(words) <= SHORT and all(word.isascii() for word in words):
        return True
    return sum(word in FUNCTION_WORDS for word in words) >= LEAST_SHARE * len(words)
