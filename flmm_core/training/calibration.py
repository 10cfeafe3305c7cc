"""Calibration of heads that need no training: which attention heads of an LMM point, and its presence score.

No label is needed. The LMM describes images; the noun chunks of its own descriptions are phrases of things that are there, and
those of other images' descriptions are phrases of things that are not. Its weights do not change.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from flmm_core.config import GroundingConfig
from flmm_core.evaluation.matching import normalise_answer
from flmm_core.heads.attention_heads import HEADS, blob_masks
from flmm_core.heads.attention_presence import attention_inside, auroc, fit_presence, middle_bands
from flmm_core.heads.head_choice import HeadFigures, ranked_heads
from flmm_core.images.geometry import unpad
from flmm_core.keywords.noun_chunks import noun_chunks
from flmm_core.keywords.spans import spans_from_ranges
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.loading.head_choices import ChosenHead, HeadChoice, PresenceFigures

PHRASES = 8
"""Most phrases of an image, so that no image decides alone."""


@dataclass(frozen=True)
class CalibrationSettings:
    """How attention heads are chosen."""

    question: str = GroundingConfig.refer_prompt
    """To which the LMM's answers give the phrases."""
    criterion: str = "contrast"
    heads: int = HEADS
    max_new_tokens: int = 128


def calibrate(
    lmm: FrozenLmm,
    images: Sequence[Callable[[], np.ndarray]],
    settings: CalibrationSettings,
    *,
    name: str,
    fingerprint: str,
) -> HeadChoice:
    """Choose heads and calibrate the presence score, with progress bars.

    Args:
        lmm: the LMM.
        images: readers of ``[H, W, 3]`` uint8 RGB images, at least two.
        settings: of the choice.
        name: of the LMM, for people.
        fingerprint: of its weights.

    Raises:
        ValueError: there are too few images, or the descriptions name nothing.
    """
    if len(images) < 2:
        raise ValueError(f"images: expected at least 2, got {len(images)}")
    described = [_described(lmm, read(), settings) for read in tqdm(images, desc="describing", unit="image")]
    count = sum(len(one.phrases) for one in described)
    if not count:
        raise ValueError(f"descriptions: expected noun chunks in some answer to {settings.question!r}, got none")
    figures = [one.figures for one in described if one.figures is not None]
    ranked = ranked_heads(figures, settings.criterion)[: settings.heads]
    places = next(one.places for one in described if one.places)
    chosen = [head.channel for head in ranked]
    middle = middle_bands([layer for layer, _ in places], lmm.shape.layers)
    presence = _presence(lmm, images, [one.phrases for one in described], chosen, middle)
    return HeadChoice(
        lmm=name,
        lmm_fingerprint=fingerprint,
        lmm_channels=lmm.shape.channels,
        criterion=settings.criterion,
        images=len(images),
        phrases=count,
        heads=tuple(
            ChosenHead(h.channel, *places[h.channel], h.votes, round(h.attention, 5), round(h.score, 5)) for h in ranked
        ),
        presence=presence,
    )


@dataclass(frozen=True)
class _Described:
    """What the LMM said about an image."""

    phrases: tuple[str, ...]
    figures: HeadFigures | None
    places: tuple[tuple[int, int], ...]


def _described(lmm: FrozenLmm, image: np.ndarray, settings: CalibrationSettings) -> _Described:
    trace = lmm.generate(lmm.encode_image(Image.fromarray(image)), settings.question, max_new_tokens=settings.max_new_tokens)
    spans = spans_from_ranges(trace, noun_chunks(trace.text) if trace.token_ids else [])[:PHRASES]
    if not spans:
        return _Described((), None, ())
    # By the last token of each phrase, as published: the words before it do not know yet what is named.
    last = trace.merged_attention([(span.token_end - 1, span.token_end) for span in spans])
    maps = unpad(last, trace.geometry).cpu().numpy()
    words = dict.fromkeys(normalise_answer(span.text) for span in spans)
    return _Described(tuple(words), HeadFigures.of(maps, settings.criterion), trace.channel_heads())


def _presence(
    lmm: FrozenLmm,
    images: Sequence[Callable[[], np.ndarray]],
    phrases: Sequence[tuple[str, ...]],
    chosen: Sequence[int],
    middle: tuple[tuple[int, int], ...],
) -> PresenceFigures | None:
    """The presence score, of the chosen heads or of the middle layers, whichever tells the phrases apart better.

    None where no image has phrases that another one lacks.
    """
    chance = random.Random(0)
    everything = sorted({phrase for own in phrases for phrase in own})
    ways = (tuple((channel, channel + 1) for channel in chosen), middle)
    inside: dict[bool, list[Tensor]] = {True: [], False: []}
    for read, own in zip(tqdm(images, desc="presence", unit="image"), phrases, strict=True):
        others = [phrase for phrase in everything if phrase not in own]
        asked = [(phrase, True) for phrase in own] + [(one, False) for one in chance.sample(others, min(len(own), len(others)))]
        if not asked:
            continue
        chance.shuffle(asked)
        encoded = lmm.encode_image(Image.fromarray(read()))
        trace, spans = lmm.teacher_force_phrases(encoded, [phrase for phrase, _ in asked])
        maps = trace.phrase_attention(spans)
        coarse = blob_masks(maps, trace.geometry, chosen)
        found = torch.stack([attention_inside(maps, coarse, bands) for bands in ways], dim=1).cpu()
        for (_, there), values in zip(asked, found, strict=True):
            inside[there].append(values)
    if not inside[True] or not inside[False]:
        return None
    present, absent = (torch.stack(inside[there]).numpy() for there in (True, False))
    figures = [auroc(present[:, way], absent[:, way]) for way in range(len(ways))]
    best = int(np.argmax(figures))
    score = fit_presence(present[:, best], absent[:, best], ways[best])
    return PresenceFigures(score, round(figures[best], 5), len(present), len(absent))
