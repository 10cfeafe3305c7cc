"""Records of an evaluation as figures with intervals, as JSON, and as rows of a table."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from flmm_core.evaluation.metrics import Figure, Retrieval, cumulative_iou, f1, mean_iou, share
from flmm_core.evaluation.tabletop import ChatRecord, MaskPair, PictureRecord, ReferRecord, SpanCounts
from flmm_core.types import StageSeconds

ALL = "all"
KEPT_MISTAKES = 100
"""Most wrong answers that the JSON file shows."""


@dataclass(frozen=True)
class MaskFigures:
    """Masks of the U-Net at picture size (coarse), and after SAM (refined)."""

    coarse_ciou: Figure
    refined_ciou: Figure
    coarse_miou: Figure
    refined_miou: Figure


@dataclass(frozen=True)
class KeywordFigures:
    """F1 of the phrases picked from the true answers: exact character ranges, and words."""

    phrases: Figure
    words: Figure


@dataclass(frozen=True)
class Mistake:
    """A wrong answer."""

    kind: str
    question: str
    truth: str
    answer: str


@dataclass(frozen=True)
class TabletopReport:
    """All figures of an evaluation."""

    pictures: int
    answers: dict[str, Figure]
    """Share of right answers by kind of question, and of all."""
    absence_without_phrase: Figure
    """Share of questions about things that are not there whose answer points at nothing."""
    chat_masks: MaskFigures
    """Of all answers; every thing that the true answer names counts, and so does every mask of anything else."""
    chat_masks_right: MaskFigures
    """Of right answers alone."""
    selector: KeywordFigures | None
    """None if the heads have no trained selector."""
    chunks: KeywordFigures
    """Of the noun-chunk rule, for comparison."""
    refer_masks: dict[str, MaskFigures]
    """Of "names", of "relations" ("mug left of the lemon"), and of all."""
    chat_seconds: StageSeconds
    """Medians over the questions; ``image`` is of the first about each picture."""
    mistakes: tuple[Mistake, ...]
    """The first wrong answers."""


def report_of(records: Sequence[PictureRecord]) -> TabletopReport:
    """Figures of an evaluation's records, one for each picture."""
    chat = [record for picture in records for record in picture.chat]
    kinds = list(dict.fromkeys(record.kind for record in chat))
    absent = [record for record in chat if record.kind == "absence"]
    has_selector = any(record.selector is not None for record in chat)
    wrong = [Mistake(r.kind, r.question, r.truth, r.answer) for r in chat if not r.right]
    return TabletopReport(
        pictures=len(records),
        answers={kind: _right([r for r in chat if kind in (ALL, r.kind)]) for kind in (*kinds, ALL)},
        absence_without_phrase=share(sum(record.phrases == 0 for record in absent), len(absent)),
        chat_masks=_mask_figures([[r.masks for r in picture.chat] for picture in records]),
        chat_masks_right=_mask_figures([[r.masks for r in picture.chat if r.right] for picture in records]),
        selector=_keyword_figures(records, lambda record: record.selector) if has_selector else None,
        chunks=_keyword_figures(records, lambda record: record.chunks),
        refer_masks={
            "names": _refer_figures(records, lambda record: not record.relational),
            "relations": _refer_figures(records, lambda record: record.relational),
            ALL: _refer_figures(records, lambda record: True),
        },
        chat_seconds=_median_seconds(records),
        mistakes=tuple(wrong[:KEPT_MISTAKES]),
    )


def _right(records: Sequence[ChatRecord]) -> Figure:
    return share(sum(record.right for record in records), len(records))


def _mask_figures(pictures: Sequence[Sequence[MaskPair]]) -> MaskFigures:
    coarse = [[mask for masks in own for mask in masks.coarse] for own in pictures]
    refined = [[mask for masks in own for mask in masks.refined] for own in pictures]
    return MaskFigures(cumulative_iou(coarse), cumulative_iou(refined), mean_iou(coarse), mean_iou(refined))


def _refer_figures(records: Sequence[PictureRecord], chosen: Callable[[ReferRecord], bool]) -> MaskFigures:
    return _mask_figures([[record.masks for record in picture.refer if chosen(record)] for picture in records])


def _keyword_figures(records: Sequence[PictureRecord], counts: Callable[[ChatRecord], SpanCounts | None]) -> KeywordFigures:
    own = [[found for record in picture.chat if (found := counts(record)) is not None] for picture in records]
    return KeywordFigures(
        phrases=f1([_sum([found.phrases for found in picture]) for picture in own]),
        words=f1([_sum([found.words for found in picture]) for picture in own]),
    )


def _sum(counts: Sequence[Retrieval]) -> Retrieval:
    return Retrieval(sum(c.right for c in counts), sum(c.found for c in counts), sum(c.true for c in counts))


def _median_seconds(records: Sequence[PictureRecord]) -> StageSeconds:
    spent = [record.seconds for picture in records for record in picture.chat]
    paid = [seconds for seconds in spent if seconds.image > 0]

    def median(stage: str) -> float:
        values = [getattr(seconds, stage) for seconds in (paid if stage == "image" else spent)]
        return statistics.median(values) if values else 0.0

    return StageSeconds(**{entry.name: median(entry.name) for entry in fields(StageSeconds)})


def write_json(path: Path, report: TabletopReport, **context: Any) -> None:
    """Write a report with what it is about, for instance the command and the model; numbers that do not exist are null."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_plain({**context, **asdict(report)}), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    """With rounded numbers and without NaN, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return round(value, 5) if math.isfinite(value) else None
    return value


def table_rows(report: TabletopReport) -> list[tuple[str, str, str, str]]:
    """Rows of what was measured, its value, its 95 % interval and on how many cases."""
    rows = [_row(f"right answers: {kind}", figure) for kind, figure in report.answers.items()]
    rows.append(_row("absence: no mask", report.absence_without_phrase))
    for name, masks in (("chat, all answers", report.chat_masks), ("chat, right answers", report.chat_masks_right)):
        rows += _mask_rows(name, masks)
    for name, masks in report.refer_masks.items():
        rows += _mask_rows(f"refer, {name}", masks)
    for name, keywords in (("selector", report.selector), ("noun chunks", report.chunks)):
        if keywords is not None:
            rows += [_row(f"{name}: F1 of phrases", keywords.phrases), _row(f"{name}: F1 of words", keywords.words)]
    return rows


def _mask_rows(name: str, masks: MaskFigures) -> list[tuple[str, str, str, str]]:
    return [
        _row(f"{name}: cIoU, U-Net", masks.coarse_ciou),
        _row(f"{name}: cIoU, SAM", masks.refined_ciou),
        _row(f"{name}: mIoU, U-Net", masks.coarse_miou),
        _row(f"{name}: mIoU, SAM", masks.refined_miou),
    ]


def _row(name: str, figure: Figure) -> tuple[str, str, str, str]:
    if math.isnan(figure.value):
        return name, "-", "-", str(figure.count)
    return name, f"{figure.value:.3f}", f"{figure.low:.3f} to {figure.high:.3f}", str(figure.count)
