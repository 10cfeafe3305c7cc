"""Phrases with their masks: from coarse masks and presence to what the pipeline answers with."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from flmm_core.config import GroundingConfig
from flmm_core.heads.interface import Heads
from flmm_core.lmm.trace import LmmTrace
from flmm_core.sam.refiner import SamImage
from flmm_core.types import CoarseMasks, GroundedPhrase, KeywordSpan


@torch.no_grad()
def refined_phrases(
    heads: Heads,
    trace: LmmTrace,
    spans: Sequence[KeywordSpan],
    presence: Sequence[float],
    coarse: CoarseMasks,
    image: SamImage,
    config: GroundingConfig,
) -> tuple[GroundedPhrase, ...]:
    """Refine the masks of phrases whose object is in the image; the others get an empty mask and are marked as absent.

    Args:
        heads: text prompt and SAM refiner.
        trace: of the answer.
        spans: ``n`` phrases of it.
        presence: ``n`` probabilities that the object is in the image.
        coarse: ``n`` masks.
        image: SAM's embedding of it.
        config: ``presence_threshold`` and ``mask_threshold``.
    """
    present = [i for i, probability in enumerate(presence) if probability >= config.presence_threshold]
    texts = [heads.text_tokens(states) for states in trace.phrase_states([spans[i] for i in present])]
    refined = heads.sam.masks(image, coarse.logits[present], texts, threshold=config.mask_threshold)
    nothing = torch.zeros(image.image_height, image.image_width, dtype=torch.bool)
    phrases = [
        GroundedPhrase(span.text, span.start, span.end, nothing, (0, 0, 0, 0), 0.0, probability, absent=True)
        for span, probability in zip(spans, presence, strict=True)
    ]
    for i, found in zip(present, refined, strict=True):
        span = spans[i]
        phrases[i] = GroundedPhrase(span.text, span.start, span.end, found.mask, found.box, found.score, presence[i])
    return tuple(phrases)
