"""What the parts of heads that need no training are worth, one change each, and the results of all ways to point.

Used by ``measure_training_free.py``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from flmm_core.data.samples import REFER_KINDS, Sample, Turn
from flmm_core.evaluation.metrics import cumulative_iou
from flmm_core.evaluation.report import plain_figure
from flmm_core.evaluation.tabletop import is_relational
from flmm_core.heads.attention_heads import CUT, IMITATED_PROMPTS, STEEPNESS, blob_logits, blob_masks, pointing_map
from flmm_core.heads.attention_presence import auroc
from flmm_core.images.geometry import unpad
from flmm_core.images.masks import Overlap
from flmm_core.lmm.trace import LmmTrace
from flmm_core.loading.head_choices import HeadChoice
from flmm_core.pipeline import GroundingPipeline
from flmm_core.sam.checkpoints import load_sam
from flmm_core.sam.refiner import SamRefiner
from flmm_core.types import KeywordSpan

BACKGROUND = "the background"
"""Caption whose attention is subtracted in an ablation."""


@dataclass
class Found:
    """Results of one way; one entry for each image, but for presence and time."""

    refer: list[list[Overlap]] = field(default_factory=list)
    names: list[list[Overlap]] = field(default_factory=list)
    all: list[list[Overlap]] = field(default_factory=list)
    """With absent objects, whose masks count as wrong where their presence is above the threshold."""
    chat: list[list[Overlap]] = field(default_factory=list)
    """Of right answers: all masks, also those of phrases that name nothing in the true answer."""
    chat_names: list[list[Overlap]] = field(default_factory=list)
    """Of right answers: the names in them that were picked as phrases."""
    present: list[float] = field(default_factory=list)
    absent: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    """Of each phrase of refer mode."""

    def record(self) -> dict[str, Any]:
        """Figures for JSON."""
        figures: dict[str, Any] = {
            "refer: cIoU": plain_figure(cumulative_iou(self.refer)),
            "refer, names: cIoU": plain_figure(cumulative_iou(self.names)),
        }
        if self.all:
            figures["refer, absent objects too: cIoU"] = plain_figure(cumulative_iou(self.all))
        if self.chat:
            figures["right chat answers: cIoU"] = plain_figure(cumulative_iou(self.chat))
            figures["right chat answers, names: cIoU"] = plain_figure(cumulative_iou(self.chat_names))
        if self.present and self.absent and len({*self.present, *self.absent}) > 1:
            figures["presence: AUROC"] = round(auroc(np.array(self.present), np.array(self.absent)), 4)
            figures["presence: phrases"] = [len(self.present), len(self.absent)]
        if self.seconds:
            figures["ms for each phrase of refer mode, median"] = round(1000 * float(np.median(self.seconds)), 1)
        return figures


def refer_turns(sample: Sample) -> list[Turn]:
    """Turns of refer mode."""
    return [turn for turn in sample.turns if turn.kind in REFER_KINDS]


Coarse = Callable[[LmmTrace, Sequence[KeywordSpan], Tensor], Tensor]
"""Coarse logits ``[n, h, w]`` of phrases; the last argument is ``[c, h, w]`` attention of the background's caption."""


def ablations(pipeline: GroundingPipeline, samples: Sequence[Sample], choices: dict[str, HeadChoice]) -> dict[str, Found]:
    """One change each to three heads chosen by contrast, in refer mode on phrases whose objects are there."""
    chosen = {name: [head.channel for head in choice.heads] for name, choice in choices.items()}
    three = chosen["contrast"][:3]

    def blobs(channels: Sequence[int], *, last: bool = False) -> Coarse:
        def coarse(trace: LmmTrace, spans: Sequence[KeywordSpan], _: Tensor) -> Tensor:
            first = [span.token_end - 1 if last else span.token_start for span in spans]
            maps = trace.merged_attention([(a, span.token_end) for a, span in zip(first, spans, strict=True)])
            return blob_masks(maps, trace.geometry, channels).logits

        return coarse

    def minus_background(trace: LmmTrace, spans: Sequence[KeywordSpan], background: Tensor) -> Tensor:
        maps = unpad(trace.phrase_attention(spans), trace.geometry)[:, three].numpy()
        behind = pointing_map(unpad(background, trace.geometry)[three].numpy())
        logits = [blob_logits(np.clip(pointing_map(phrase) - behind, 0, None)) for phrase in maps]
        return torch.from_numpy(np.stack(logits))

    refiner = SamRefiner(sam=load_sam(pipeline.config.sam), config=IMITATED_PROMPTS).eval()
    pointed = SamRefiner(sam=load_sam(pipeline.config.sam), config=replace(IMITATED_PROMPTS, points=3)).eval()
    box = SamRefiner(sam=load_sam(pipeline.config.sam), config=replace(IMITATED_PROMPTS, use_mask=False)).eval()
    variants: dict[str, tuple[Coarse, SamRefiner]] = {
        **{f"{n} heads by contrast": (blobs(chosen["contrast"][:n]), refiner) for n in (1, 2, 3, 5, 8)},
        "3 heads by entropy": (blobs(chosen["entropy"][:3]), refiner),
        "chosen for each phrase": (blobs(()), refiner),
        "last token": (blobs(three, last=True), refiner),
        "minus the background": (minus_background, refiner),
        "3 points too": (blobs(three), pointed),
        "box alone": (blobs(three), box),
    }
    found = {name: Found() for name in (*variants, "second pass on the crop")}
    for sample in tqdm(samples, desc="ablations", unit="image"):
        _ablate(pipeline, sample, variants, found)
        _second_pass(pipeline, sample, blobs(three), refiner, found["second pass on the crop"])
    return found


@torch.no_grad()
def _ablate(
    pipeline: GroundingPipeline, sample: Sample, variants: dict[str, tuple[Coarse, SamRefiner]], found: dict[str, Found]
) -> None:
    image = pipeline.encode(sample.image())
    embedded = image.start_sam().result()
    trace, spans = pipeline.lmm.teacher_force_phrases(image.lmm(), [BACKGROUND])
    background = trace.phrase_attention(spans)[0]
    for name in variants:
        found[name].refer.append([])
        found[name].names.append([])
    for turn in refer_turns(sample):
        trace, spans = pipeline.lmm.teacher_force_phrases(image.lmm(), turn.phrases)
        there = [i for i, span in enumerate(turn.spans) if span.objects]
        if not there:
            continue
        for name, (coarse_of, refiner) in variants.items():
            coarse = coarse_of(trace, [spans[i] for i in there], background)
            texts = [coarse.new_zeros(0, 256)] * len(there)
            for i, mask in zip(there, refiner.masks(embedded, coarse, texts, threshold=0.5), strict=True):
                overlap = Overlap.of(mask.mask.numpy(), sample.mask(turn.spans[i].objects))
                found[name].refer[-1].append(overlap)
                if not is_relational(turn.phrases[i]):
                    found[name].names[-1].append(overlap)


@torch.no_grad()
def _second_pass(pipeline: GroundingPipeline, sample: Sample, coarse_of: Coarse, refiner: SamRefiner, found: Found) -> None:
    """The phrase again on the part of the image around its first blob, four times as large; its blob prompts SAM there."""
    pixels = sample.image()
    image = pipeline.encode(pixels)
    embedded = image.start_sam().result()
    height, width = pixels.shape[:2]
    found.refer.append([])
    found.names.append([])
    for turn in refer_turns(sample):
        trace, spans = pipeline.lmm.teacher_force_phrases(image.lmm(), turn.phrases)
        coarse = coarse_of(trace, spans, trace.states)
        for words, span, logits in zip(turn.phrases, turn.spans, coarse, strict=True):
            if not span.objects:
                continue
            rows, columns = logits.shape
            y, x = divmod(int(logits.argmax()), columns)
            top = min(max(0, int((y + 0.5) * height / rows) - height // 4), height - height // 2)
            left = min(max(0, int((x + 0.5) * width / columns) - width // 4), width - width // 2)
            part = pipeline.encode(np.ascontiguousarray(pixels[top : top + height // 2, left : left + width // 2]))
            again, its = pipeline.lmm.teacher_force_phrases(part.lmm(), [words])
            seen = coarse_of(again, its, again.states)[None]
            whole = torch.full((2 * seen.shape[-2] * 2, 2 * seen.shape[-1] * 2), -CUT * STEEPNESS)
            fine = torch.nn.functional.interpolate(seen, (2 * seen.shape[-2], 2 * seen.shape[-1]), mode="bilinear")[0, 0]
            a, b = round(top / height * whole.shape[0]), round(left / width * whole.shape[1])
            whole[a : a + fine.shape[0], b : b + fine.shape[1]] = fine
            (mask,) = refiner.masks(embedded, whole[None], [fine.new_zeros(0, 256)], threshold=0.5)
            overlap = Overlap.of(mask.mask.numpy(), sample.mask(span.objects))
            found.refer[-1].append(overlap)
            if not is_relational(words):
                found.names[-1].append(overlap)
