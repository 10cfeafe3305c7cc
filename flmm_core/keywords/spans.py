"""Which words of an answer get a mask: text to phrases to token ranges.

Heads with a keyword selector use it; the published heads have none, and noun chunks are taken. Either way a phrase is a
character range of the answer, mapped to tokens by the tokenizer's offsets, never by comparing ids.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import Tensor

from flmm_core.keywords.noun_chunks import DETERMINERS, joins_adjectives, noun_chunks
from flmm_core.lmm.trace import LmmTrace
from flmm_core.types import KeywordSpan

Range = tuple[int, int]

_WORD = re.compile(r"[^\W_]+(?:['’-][^\W_]+)*")


def select_keywords(trace: LmmTrace, logits: Tensor | None, *, threshold: float) -> tuple[KeywordSpan, ...]:
    """Phrases of an answer that are to get a mask, in reading order.

    Args:
        trace: the answer.
        logits: ``[t]`` of the keyword selector; None for noun chunks.
        threshold: a token belongs to a phrase from this probability on; unused without a selector.
    """
    if not trace.token_ids:
        return ()
    if logits is None:
        return spans_from_ranges(trace, noun_chunks(trace.text))
    probabilities = logits.sigmoid().tolist()
    ranges = phrase_ranges(trace.text, trace.token_offsets, probabilities, threshold)
    return spans_from_ranges(trace, ranges, probabilities)


def phrase_ranges(text: str, offsets: Sequence[Range], probabilities: Sequence[float], threshold: float) -> list[Range]:
    """Adjacent positive tokens as phrases, snapped to whole words, so without white space and punctuation around them.

    Args:
        text: the answer.
        offsets: character range of each token.
        probabilities: of each token, in [0, 1].
        threshold: a token is positive from this probability on.

    Returns:
        Half-open character ranges, in reading order, none empty, none overlapping.
    """
    marked = bytearray(len(text))
    for (start, end), probability in zip(offsets, probabilities, strict=True):
        if probability >= threshold:
            marked[start:end] = b"\1" * (end - start)
    words = [match.span() for match in _WORD.finditer(text)]
    lower = ["", *(text[start:end].lower() for start, end in words), ""]
    phrases: list[Range] = []
    for i, (start, end) in enumerate(words):
        before, word, after = lower[i : i + 3]
        if not any(marked[start:end]) or (word in ("and", "or") and not joins_adjectives(before, word, after)):
            continue
        # Punctuation and unmarked words separate phrases, and so does an article, which begins a new thing.
        if phrases and text[phrases[-1][1] : start].isspace() and word not in DETERMINERS:
            phrases[-1] = (phrases[-1][0], end)
        else:
            phrases.append((start, end))
    return [(start, end) for start, end in phrases if text[start:end].lower() not in DETERMINERS]


def spans_from_ranges(
    trace: LmmTrace, ranges: Sequence[Range], probabilities: Sequence[float] | None = None
) -> tuple[KeywordSpan, ...]:
    """Character ranges of an answer as spans, with their tokens.

    Args:
        trace: the answer.
        ranges: half-open character ranges.
        probabilities: of each token; a span's score is their mean, or 1 if there are none.
    """
    spans = []
    for start, end in ranges:
        first, last = trace.span_of(start, end)
        scores = probabilities[first:last] if probabilities is not None else [1.0]
        spans.append(KeywordSpan(trace.text[start:end], start, end, first, last, sum(scores) / len(scores)))
    return tuple(spans)


def surest_spans(spans: Sequence[KeywordSpan], most: int) -> tuple[list[KeywordSpan], tuple[str, ...]]:
    """The ``most`` spans of the highest score, and the texts of the others; both in the order of the answer."""
    best = sorted(sorted(range(len(spans)), key=lambda i: -spans[i].score)[:most])
    return [spans[i] for i in best], tuple(span.text for i, span in enumerate(spans) if i not in set(best))


def check_ranges(answer: str, ranges: Sequence[Range]) -> None:
    """Refuse character ranges ``[start, end)`` that lie outside an answer or are empty.

    Raises:
        ValueError: names the range.
    """
    for start, end in ranges:
        if not 0 <= start < end <= len(answer):
            raise ValueError(f"ranges: expected characters of an answer of {len(answer)}, got {start} to {end}")
