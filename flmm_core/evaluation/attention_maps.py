"""Measures where each attention head of the frozen LMM looks while it names an object.

This is the evidence that grounding comes from the LMM: it was trained without masks, boxes and coordinates, yet single heads
point at the objects it names. :mod:`flmm_core.drawing.attention_figure` draws what is measured here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from flmm_core.data.broken import BrokenSampleError, sample_errors
from flmm_core.data.samples import MISTAKE, NO_ANSWERS, REFER, Sample, Span, Turn
from flmm_core.drawing.attention_figure import AttentionRow, HeadChart
from flmm_core.evaluation.matching import true_masks
from flmm_core.evaluation.metrics import Figure, Tally, share
from flmm_core.evaluation.tabletop import coarse_mask
from flmm_core.images.geometry import unpad
from flmm_core.images.masks import peaks, share_on, touched_cells
from flmm_core.lmm.trace import LmmTrace
from flmm_core.pipeline import GroundingPipeline
from flmm_core.requests.callbacks import CoarseMaskCallbacks


@dataclass(frozen=True)
class HeadRanking:
    """How well each attention head points at named objects."""

    hits: np.ndarray
    """``[p, c]`` int: names of each image for which the peak cell of the head's map has its centre on the true mask."""
    attention: np.ndarray
    """``[p, c]`` float: sums, over the names of each image, of :func:`share_on`."""
    names: np.ndarray
    """``[p]`` int: names of each image."""
    random_pointing: float
    """Mean share of the image that the named objects cover: the hit rate of a random point."""
    random_attention: float
    """Mean share of the cells that the named objects touch: the share that uniform attention would have."""
    heads: int
    """Query heads of each layer."""

    def best(self, count: int | None = None) -> list[int]:
        """The channels that point best, best first; all of them without ``count``."""
        order = np.lexsort((-self.attention.sum(0), -self.hits.sum(0)))
        return order[:count].tolist()

    def pointing(self, channel: int) -> Figure:
        """Share of the names on whose object one head's peak lies."""
        tallies = zip(self.hits[:, channel].tolist(), self.names.tolist(), strict=True)
        return share([Tally(hits, names) for hits, names in tallies])

    def attention_share(self, channel: int) -> float:
        """Mean share of one head's attention to the image that lies on the named object's cells."""
        return float(self.attention[:, channel].sum() / self.names.sum())

    def layer_and_head(self, channel: int) -> tuple[int, int]:
        """Layer and head of a channel, both counted from 0, as in the code of transformers."""
        return channel // self.heads, channel % self.heads

    def chart(self) -> HeadChart:
        """All heads, for the figure."""
        channels = range(self.hits.shape[1])
        pointing = np.array([self.pointing(channel).value for channel in channels]).reshape(-1, self.heads)
        return HeadChart(pointing=pointing, names=int(self.names.sum()), random_pointing=self.random_pointing)

    def record(self) -> dict[str, Any]:
        """All heads, best first, as an object for JSON."""
        rows = []
        for channel in self.best():
            layer, head = self.layer_and_head(channel)
            figure = self.pointing(channel)
            row = {"layer": layer, "head": head, "pointing": figure.value, "low": figure.low, "high": figure.high}
            row = {key: round(value, 4) for key, value in row.items()}
            rows.append({**row, "attention": round(self.attention_share(channel), 4), "count": figure.count})
        chance = {"pointing": round(self.random_pointing, 4), "attention": round(self.random_attention, 4)}
        return {"images": len(self.names), "names": int(self.names.sum()), "random": chance, "heads": rows}


@dataclass(frozen=True)
class _Pointing:
    """Sums over the names of one image; see :class:`HeadRanking`."""

    hits: np.ndarray
    attention: np.ndarray
    names: int
    covered: float
    touched: float


def rank_heads(pipeline: GroundingPipeline, samples: Sequence[Sample], *, tell: Callable[[str], None]) -> HeadRanking:
    """Measure every head on the present objects that the true answers name, with one answer of each kind and image.

    Args:
        pipeline: its LMM reads the answers; the grounding heads are not used.
        samples: held out, with ground truth.
        tell: called with one line for each sample that cannot be used; it is skipped.
    """
    found: list[_Pointing] = []
    for sample in tqdm(samples, desc="pointing", unit="image"):
        try:
            with sample_errors(str(sample.path)):
                found.append(_pointing(pipeline, sample))
        except BrokenSampleError as error:
            tell(f"skipped: {error}")
    total = sum(one.names for one in found)
    if not total:
        raise ValueError("images: expected some whose answers name things, got none")
    return HeadRanking(
        np.stack([one.hits for one in found]),
        np.stack([one.attention for one in found]),
        np.array([one.names for one in found]),
        sum(one.covered for one in found) / total,
        sum(one.touched for one in found) / total,
        pipeline.lmm.shape.heads,
    )


def _pointing(pipeline: GroundingPipeline, sample: Sample) -> _Pointing:
    channels = pipeline.lmm.shape.channels
    hits, attention = np.zeros(channels, int), np.zeros(channels)
    names, covered, touched = 0, 0.0, 0.0
    image = pipeline.encode(sample.image())
    firsts = {turn.kind: turn for turn in reversed(sample.turns) if turn.present and turn.kind != MISTAKE}
    for turn in firsts.values():
        trace = pipeline.teacher_force(image, turn.question, turn.answer)
        maps = _maps(trace, [(span.start, span.end) for span in turn.present])
        for phrase_maps, span in zip(maps, turn.present, strict=True):
            truth = sample.mask(span.objects)
            hits += [truth[y, x] for x, y in peaks(phrase_maps, *truth.shape)]
            attention += share_on(phrase_maps, truth)
            names += 1
            covered += float(truth.mean())
            touched += float(touched_cells(truth, *phrase_maps.shape[-2:]).mean())
    return _Pointing(hits, attention, names, covered, touched)


def attention_rows(
    pipeline: GroundingPipeline,
    image: np.ndarray,
    text: str | Sequence[str],
    channels: Sequence[int],
    truth: tuple[Sample, Turn] | None = None,
) -> list[AttentionRow]:
    """Ask about an image, and collect the attention maps of each phrase of the answer.

    Args:
        pipeline: answers.
        image: ``[H, W, 3]`` uint8 RGB.
        text: a question; or phrases, for refer mode.
        channels: attention heads to show.
        truth: image and turn of a data set, if the image belongs to one.
    """
    handle, seen = pipeline.encode(image), CoarseMaskCallbacks()
    if isinstance(text, str):
        question, answer = text, pipeline.chat(handle, text, callbacks=seen)
    else:
        question, answer = "", pipeline.refer(handle, text, callbacks=seen)
    if not answer.phrases:
        return []
    assert seen.coarse is not None
    trace = pipeline.teacher_force(handle, question or pipeline.lmm.refer_prompt, answer.text)
    maps = _maps(trace, [(phrase.start, phrase.end) for phrase in answer.phrases])
    masks: list[np.ndarray | None] = [None] * len(answer.phrases)
    if truth is not None:
        masks = true_masks(answer, truth[1], truth[0].mask)
    return [
        AttentionRow(
            image=image,
            question=question,
            answer=answer.text,
            phrase=phrase.text,
            maps=maps[index, list(channels)],
            coarse=coarse_mask(seen.coarse.logits[index], image.shape[:2], pipeline.config.mask_threshold),
            refined=phrase.mask,
            truth=masks[index],
        )
        for index, phrase in enumerate(answer.phrases)
    ]


def clear_names(samples: Sequence[Sample]) -> list[tuple[Sample, Turn]]:
    """For each image two unambiguous names from its first relation or other answer with such names, for refer mode."""
    chosen = []
    for sample in samples:
        clear = {name for name in sample.names if sample.names.count(name) == 1}
        turns = [
            turn
            for turn in sample.turns
            if turn.kind not in NO_ANSWERS and len({turn.answer[s.start : s.end] for s in turn.present[:2]} & clear) == 2
        ]
        turns.sort(key=lambda turn: turn.kind != "relation")
        if turns:
            chosen.append((sample, _refer_turn(turns[0])))
    return chosen


def _refer_turn(turn: Turn) -> Turn:
    answer, spans = "", []
    for span in turn.present[:2]:
        name = turn.answer[span.start : span.end]
        answer += " " if answer else ""
        spans.append(Span(len(answer), len(answer) + len(name), span.objects))
        answer += name + "."
    return Turn(REFER, "", answer, tuple(spans))


def _maps(trace: LmmTrace, ranges: Sequence[tuple[int, int]]) -> np.ndarray:
    """Attention maps of character ranges of an answer, ``[n, c, h, w]`` float32, cut to the image."""
    merged = trace.merged_attention([trace.span_of(start, end) for start, end in ranges])
    return unpad(merged, trace.geometry).cpu().numpy()
