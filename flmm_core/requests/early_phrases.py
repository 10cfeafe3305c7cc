"""Phrases that are complete while the answer is still being generated, with their coarse masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from flmm_core.lmm.trace import LmmTrace
from flmm_core.requests.callbacks import Callbacks
from flmm_core.types import CoarseMasks, KeywordSpan


def early_phrases(
    callbacks: Callbacks,
    keywords: Callable[[LmmTrace], Sequence[KeywordSpan]],
    coarse_masks: Callable[[LmmTrace, Sequence[KeywordSpan]], CoarseMasks],
) -> Callable[[LmmTrace], None] | None:
    """A callback for traces of an unfinished answer, which reports each phrase once.

    Args:
        callbacks: receive the phrases.
        keywords: phrases of an answer.
        coarse_masks: masks of phrases before refinement.

    Returns:
        None if the callbacks do not ask for early phrases.
    """
    report = callbacks.phrases_callback
    if report is None:
        return None
    reported: set[int] = set()

    def on_trace(trace: LmmTrace) -> None:
        complete = [span for span in keywords(trace) if span.token_end < len(trace.token_ids)]
        spans = [span for span in complete if span.start not in reported]
        if spans:
            reported.update(span.start for span in spans)
            report(spans, coarse_masks(trace, spans))

    return on_trace
