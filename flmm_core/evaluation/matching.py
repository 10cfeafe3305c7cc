"""Which mask of an answer is compared with which true mask. Strict: nothing that is missing or too much goes unpunished."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from flmm_core.data.dataset import Picture, Turn
from flmm_core.evaluation.metrics import Overlap, normalise_answer
from flmm_core.types import GroundedPhrase


def match_phrases(phrases: Sequence[GroundedPhrase], turn: Turn, *, right: bool) -> list[tuple[int | None, int | None]]:
    """Pair the phrases of an answer with the spans of the true one, each with at most one.

    If the answer is right, a phrase belongs to the span that shares most characters with it, place for place; if it is wrong,
    to a span of the same words, in reading order.

    Returns:
        Pairs of a phrase's and a span's index; None for what has no partner. Every phrase and every span comes once.
    """
    score = _shared_characters if right else _same_words
    candidates = [
        (-points, p, s)
        for p, phrase in enumerate(phrases)
        for s, span in enumerate(turn.spans)
        if (points := score(phrase, (span.start, span.end), turn.answer)) > 0
    ]
    pairs: list[tuple[int | None, int | None]] = []
    free_phrases, free_spans = set(range(len(phrases))), set(range(len(turn.spans)))
    for _, p, s in sorted(candidates):
        if p in free_phrases and s in free_spans:
            pairs.append((p, s))
            free_phrases.remove(p)
            free_spans.remove(s)
    pairs += [(None, s) for s in sorted(free_spans)]
    pairs += [(p, None) for p in sorted(free_phrases)]
    return pairs


def _shared_characters(phrase: GroundedPhrase, span: tuple[int, int], answer: str) -> int:
    return min(phrase.end, span[1]) - max(phrase.start, span[0])


def _same_words(phrase: GroundedPhrase, span: tuple[int, int], answer: str) -> int:
    return int(normalise_answer(phrase.text) == normalise_answer(answer[slice(*span)]))


def overlaps(
    pairs: Sequence[tuple[int | None, int | None]], found: Callable[[int], np.ndarray], picture: Picture, turn: Turn
) -> tuple[Overlap, ...]:
    """Overlap of each pair's masks; a mask without a partner adds its area to the union.

    Args:
        pairs: of :func:`match_phrases`.
        found: mask ``[H, W]`` bool of the phrase with this index.
        picture: has the true masks.
        turn: its spans say which.
    """
    return tuple(
        Overlap.of(
            None if p is None else found(p),
            None if s is None else picture.mask(turn.spans[s].objects),
        )
        for p, s in pairs
    )
