"""Matches phrases of an answer with true ones and compares their masks, for all evaluations.

Strict: nothing that is missing or too much goes unpunished.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import numpy as np

from flmm_core.data.samples import Span, Turn
from flmm_core.images.masks import Overlap
from flmm_core.types import GroundedAnswer, GroundedPhrase

TrueMask = Callable[[tuple[int, ...]], np.ndarray]
"""The mask ``[H, W]`` bool of some objects of an image, together."""
Pair = tuple[int | None, int | None]
"""Indices of a phrase and of a span; None where there is no partner."""


def normalise_answer(text: str) -> str:
    """Lower case without punctuation and with single spaces, for "normalised exact match"."""
    return " ".join(re.sub(r"[^\w\s]", " ", text.lower()).split())


def is_right(answer: str, truth: str) -> bool:
    """Whether an answer equals the true one apart from case, punctuation and spacing."""
    return normalise_answer(answer) == normalise_answer(truth)


def match_phrases(phrases: Sequence[GroundedPhrase], turn: Turn, *, right: bool) -> list[Pair]:
    """Pair the phrases of an answer with the spans of the true one, each with at most one.

    If the answer is right, a phrase belongs to the span that shares most characters with it, place for place; if it is wrong,
    to a span of the same words, in reading order.

    Returns:
        Every phrase and every span once.
    """
    score = _shared_characters if right else _same_words
    candidates = [
        (-points, p, s)
        for p, phrase in enumerate(phrases)
        for s, span in enumerate(turn.spans)
        if (points := score(phrase, (span.start, span.end), turn.answer)) > 0
    ]
    pairs: list[Pair] = []
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
    return int(is_right(phrase.text, answer[slice(*span)]))


def overlaps(pairs: Sequence[Pair], found: Callable[[int], np.ndarray], turn: Turn, true: TrueMask) -> tuple[Overlap, ...]:
    """Overlap of each pair's masks; a mask without a partner adds its area to the union.

    Nothing found where nothing is to be found says nothing about masks: such a pair is left out.

    Args:
        pairs: of :func:`match_phrases`.
        found: mask ``[H, W]`` bool of the phrase with this index.
        turn: its spans say which objects are meant.
        true: masks of the image.
    """
    compared = (
        Overlap.of(None if p is None else found(p), None if s is None else true_mask(turn.spans[s], true)) for p, s in pairs
    )
    return tuple(overlap for overlap in compared if overlap.union)


def true_mask(span: Span, true: TrueMask) -> np.ndarray | None:
    """True mask of a span; None if its object is absent."""
    return true(span.objects) if span.objects else None


def true_masks(answer: GroundedAnswer, turn: Turn, true: TrueMask) -> list[np.ndarray | None]:
    """True mask of each phrase of an answer; None if its object is absent or it has no partner in the true answer."""
    masks: list[np.ndarray | None] = [None] * len(answer.phrases)
    for phrase, span in match_phrases(answer.phrases, turn, right=is_right(answer.text, turn.answer)):
        if phrase is not None and span is not None:
            masks[phrase] = true_mask(turn.spans[span], true)
    return masks
