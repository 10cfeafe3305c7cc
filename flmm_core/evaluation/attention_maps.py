"""Where the frozen LMM looks while it says the name of a thing, head by head.

This is the evidence that grounding comes from the LMM: no mask, box or coordinate ever reached it, yet single heads point at
what it names. :mod:`flmm_core.drawing.attention_figure` draws it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from flmm_core.data.dataset import REFER, Picture, Span, Turn
from flmm_core.evaluation.matching import match_phrases
from flmm_core.evaluation.metrics import Figure, Overlap, normalise_answer, share
from flmm_core.evaluation.tabletop import coarse_mask
from flmm_core.image_geometry import unpad
from flmm_core.lmm_trace import LmmTrace
from flmm_core.pipeline import GroundingPipeline
from flmm_core.types import CoarseMasks, GroundedAnswer


@dataclass(frozen=True)
class HeadRanking:
    """How often the peak of each attention head's map lies on the thing that is named."""

    hits: np.ndarray
    """``[c]`` int: phrases whose peak cell has its centre on the true mask."""
    phrases: int
    chance: float
    """Mean share of the picture that the named things cover: how often a random point would hit."""
    heads: int
    """Query heads of each layer."""

    def best(self, count: int) -> list[int]:
        """The channels that point best, best first."""
        return np.argsort(-self.hits, kind="stable")[:count].tolist()

    def accuracy(self, channel: int) -> Figure:
        """Pointing accuracy of one head."""
        return share(int(self.hits[channel]), self.phrases)

    def name(self, channel: int) -> str:
        """Layer and head, counted from 1."""
        return f"layer {channel // self.heads + 1} head {channel % self.heads + 1}"


@dataclass(frozen=True)
class AttentionRow:
    """One phrase of an answer: what some heads look at, and what became of it."""

    picture: np.ndarray
    """``[H, W, 3]`` uint8 RGB."""
    question: str
    """Empty in refer mode."""
    answer: str
    phrase: str
    maps: np.ndarray
    """``[k, h, w]`` float32 attention of the shown heads, cut to the picture."""
    coarse: np.ndarray
    """``[H, W]`` bool: the U-Net's mask."""
    refined: np.ndarray
    """``[H, W]`` bool: SAM's mask."""
    truth: np.ndarray | None
    """``[H, W]`` bool, where it is known."""

    def peak(self, index: int) -> tuple[int, int]:
        """``(x, y)`` pixel where one of the maps is largest."""
        return peaks(self.maps[index : index + 1], *self.picture.shape[:2])[0]

    def mass(self, index: int) -> float:
        """Share of one map's attention to the picture that goes to the true thing; NaN if that is not known."""
        if self.truth is None:
            return float("nan")
        heat = torch.nn.functional.interpolate(torch.from_numpy(self.maps[index])[None, None], self.truth.shape, mode="nearest")
        values = heat[0, 0].numpy()
        return float(values[self.truth].sum() / max(float(values.sum()), 1e-12))

    def iou(self, mask: np.ndarray) -> float:
        """IoU of a mask with the truth; NaN if that is not known."""
        return float("nan") if self.truth is None else Overlap.of(mask, self.truth).iou


def peaks(maps: np.ndarray, height: int, width: int) -> list[tuple[int, int]]:
    """Centres ``(x, y)`` of the largest cells of maps ``[k, h, w]``, in pixels of the picture that they cover."""
    rows, columns = maps.shape[-2:]
    largest = maps.reshape(len(maps), -1).argmax(1)
    return [(int((at % columns + 0.5) * width / columns), int((at // columns + 0.5) * height / rows)) for at in largest]


def rank_heads(pipeline: GroundingPipeline, pictures: Sequence[Picture]) -> HeadRanking:
    """Let every head point at everything that the true answers name, one answer of each kind for each picture.

    Args:
        pipeline: its LMM reads the answers; the heads on top of it play no part.
        pictures: held out, with their truth.
    """
    hits = np.zeros(pipeline.lmm.shape.channels, int)
    phrases, covered = 0, 0.0
    for picture in tqdm(pictures, desc="pointing", unit="picture"):
        pipeline.set_image(picture.image())
        firsts = {turn.kind: turn for turn in reversed(picture.turns) if turn.spans}
        for turn in firsts.values():
            maps = _maps(pipeline.read(turn.question, turn.answer), [(span.start, span.end) for span in turn.spans])
            for own, span in zip(maps, turn.spans, strict=True):
                truth = picture.mask(span.objects)
                hits += [truth[y, x] for x, y in peaks(own, *truth.shape)]
                phrases, covered = phrases + 1, covered + float(truth.mean())
    if not phrases:
        raise ValueError("pictures: expected some whose answers name things, got none")
    return HeadRanking(hits, phrases, covered / phrases, pipeline.lmm.shape.heads)


def attention_rows(
    pipeline: GroundingPipeline,
    picture: np.ndarray,
    text: str | Sequence[str],
    channels: Sequence[int],
    truth: tuple[Picture, Turn] | None = None,
) -> list[AttentionRow]:
    """Ask about a picture, and look at each phrase of the answer.

    Args:
        pipeline: answers.
        picture: ``[H, W, 3]`` uint8 RGB.
        text: a question; or phrases, for refer mode.
        channels: attention heads to show.
        truth: the picture and turn of a data set that this is, if it is.
    """
    pipeline.set_image(picture)
    coarse: list[CoarseMasks] = []
    if isinstance(text, str):
        question, answer = text, pipeline.chat(text, on_coarse=coarse.append)
    else:
        question, answer = "", pipeline.refer(text, on_coarse=coarse.append)
    if not answer.phrases:
        return []
    trace = pipeline.read(question or pipeline.lmm.refer_prompt, answer.text)
    maps = _maps(trace, [(phrase.start, phrase.end) for phrase in answer.phrases])
    masks = _true_masks(answer, truth)
    return [
        AttentionRow(
            picture=picture,
            question=question,
            answer=answer.text,
            phrase=phrase.text,
            maps=maps[index, list(channels)],
            coarse=coarse_mask(coarse[0].logits[index], picture.shape[:2], pipeline.config.mask_threshold),
            refined=phrase.mask,
            truth=masks[index],
        )
        for index, phrase in enumerate(answer.phrases)
    ]


def telling_turns(pictures: Sequence[Picture]) -> list[tuple[Picture, Turn]]:
    """Of each picture two names that mean one thing each, of its first relation or list with such, as a turn of refer mode."""
    chosen = []
    for picture in pictures:
        clear = {name for name in picture.names if picture.names.count(name) == 1}
        turns = [
            turn
            for turn in picture.turns
            if turn.kind != REFER and len({turn.answer[s.start : s.end] for s in turn.spans[:2]} & clear) == 2
        ]
        turns.sort(key=lambda turn: turn.kind != "relation")
        if turns:
            chosen.append((picture, _refer_turn(turns[0])))
    return chosen


def _refer_turn(turn: Turn) -> Turn:
    answer, spans = "", []
    for span in turn.spans[:2]:
        name = turn.answer[span.start : span.end]
        answer += " " if answer else ""
        spans.append(Span(len(answer), len(answer) + len(name), span.objects))
        answer += name + "."
    return Turn(REFER, "", answer, tuple(spans))


def _maps(trace: LmmTrace, ranges: Sequence[tuple[int, int]]) -> np.ndarray:
    """Attention of some character ranges of an answer, ``[n, c, h, w]`` float32, cut to the picture."""
    merged = trace.merged_attention([trace.span_of(start, end) for start, end in ranges])
    return unpad(merged, trace.geometry).cpu().numpy()


def _true_masks(answer: GroundedAnswer, truth: tuple[Picture, Turn] | None) -> list[np.ndarray | None]:
    masks: list[np.ndarray | None] = [None] * len(answer.phrases)
    if truth is not None:
        picture, turn = truth
        right = normalise_answer(answer.text) == normalise_answer(turn.answer)
        for phrase, span in match_phrases(answer.phrases, turn, right=right):
            if phrase is not None and span is not None:
                masks[phrase] = picture.mask(turn.spans[span].objects)
    return masks
