"""Records of an evaluation as rows of figures with intervals, for tables and JSON."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from flmm_core.evaluation.matching import Overlap
from flmm_core.evaluation.metrics import Figure, Retrieval, Tally, cumulative_iou, f1, mean_iou, precision, recall, share
from flmm_core.evaluation.tabletop import ChatRecord, MaskPair, PhraseRecord, PictureRecord, SpanCounts
from flmm_core.types import StageSeconds

KEPT_MISTAKES = 100
"""Most wrong answers that a report shows."""


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
    figures: dict[str, Figure]
    """By name, in the order of the table."""
    seconds: StageSeconds
    """Medians of the questions, for the reader: they say more of the machine than of the model. ``image`` is that of the
    questions that paid for it."""
    mistakes: tuple[Mistake, ...]
    """The first wrong answers."""

    def record(self) -> dict[str, Any]:
        """Everything that does not hang on the machine, as JSON holds it; a number that does not exist is None."""
        rows = [{"figure": name, **_plain(figure)} for name, figure in self.figures.items()]
        return {"pictures": self.pictures, "rows": rows, "mistakes": [asdict(mistake) for mistake in self.mistakes]}

    def table(self) -> list[tuple[str, str, str, str]]:
        """Rows of what was measured, its value, its 95 % interval and on how many cases."""
        return [(name, *_cells(figure)) for name, figure in self.figures.items()]


def report_of(records: Sequence[PictureRecord]) -> TabletopReport:
    """Figures of an evaluation's records, one for each picture."""
    chat = [record for picture in records for record in picture.chat]
    wrong = [Mistake(r.kind, r.question, r.truth, r.answer) for r in chat if not r.right]
    figures = {**dict(_answers(records)), **dict(_masks(records)), **dict(_presence(records)), **dict(_keywords(records))}
    return TabletopReport(len(records), figures, _median_seconds(chat), tuple(wrong[:KEPT_MISTAKES]))


def _answers(records: Sequence[PictureRecord]) -> Iterator[tuple[str, Figure]]:
    for kind in _kinds(records):
        yield f"answers: {kind}", share([Tally.of(r.right for r in picture.chat if r.kind == kind) for picture in records])
    yield "answers: all", share([Tally.of(r.right for r in picture.chat) for picture in records])


def _kinds(records: Sequence[PictureRecord]) -> list[str]:
    return list(dict.fromkeys(record.kind for picture in records for record in picture.chat))


def _masks(records: Sequence[PictureRecord]) -> Iterator[tuple[str, Figure]]:
    """Four rows for each choice of masks; of chat by kind only where a true answer names something."""

    def right(picture: PictureRecord) -> list[MaskPair]:
        return [r.masks for r in picture.chat if r.right]

    def refer(picture: PictureRecord, relational: bool) -> list[MaskPair]:
        return [r.masks for r in picture.refer if r.relational == relational]

    chosen: dict[str, Callable[[PictureRecord], list[MaskPair]]] = {
        "right chat answers and refer names": lambda picture: right(picture) + refer(picture, False),
        "chat": lambda picture: [r.masks for r in picture.chat],
        "chat, right answers": right,
        "refer": lambda picture: [r.masks for r in picture.refer],
        "refer, names": lambda picture: refer(picture, False),
        "refer, relations": lambda picture: refer(picture, True),
    }
    for name, masks_of in chosen.items():
        yield from _mask_figures(name, [masks_of(picture) for picture in records])
    for kind in _kinds(records):
        pictures = [[r.masks for r in picture.chat if r.kind == kind] for picture in records]
        if any(r.names_things for picture in records for r in picture.chat if r.kind == kind):
            yield from _mask_figures(f"chat, {kind}", pictures)


def _mask_figures(name: str, pictures: Sequence[Sequence[MaskPair]]) -> Iterator[tuple[str, Figure]]:
    stages: dict[str, list[list[Overlap]]] = {
        "U-Net": [[mask for masks in own for mask in masks.coarse] for own in pictures],
        "SAM": [[mask for masks in own for mask in masks.refined] for own in pictures],
    }
    for measure, figure in (("cIoU", cumulative_iou), ("mean IoU", mean_iou)):
        for stage, masks in stages.items():
            yield f"{name}: {measure}, {stage}", figure(masks)


def _presence(records: Sequence[PictureRecord]) -> Iterator[tuple[str, Figure]]:
    """Whether nothing is pointed at that is not there, and what is there is not called absent."""

    def kept(phrases: Sequence[PhraseRecord]) -> Tally:
        return Tally.of(not phrase.called_absent for phrase in phrases if phrase.there)

    chat = [[phrase for r in picture.chat for phrase in r.phrases] for picture in records]
    refer = [[r.phrase for r in picture.refer] for picture in records]
    absence = [[r for r in picture.chat if r.kind == "absence"] for picture in records]
    unmasked = [Tally.of(not any(phrase.masked for phrase in r.phrases) for r in asked) for asked in absence]
    yield "absence without mask: chat", share(unmasked)
    yield "absence without mask: refer", share([Tally.of(not p.masked for p in own if not p.there) for own in refer])
    yield "present things kept: chat", share([kept(own) for own in chat])
    yield "present things kept: refer", share([kept(own) for own in refer])


def _keywords(records: Sequence[PictureRecord]) -> Iterator[tuple[str, Figure]]:
    sources: dict[str, Callable[[ChatRecord], SpanCounts | None]] = {
        "selector": lambda record: record.selector,
        "noun chunks": lambda record: record.chunks,
    }
    for source, counts in sources.items():
        pictures = [[found for r in picture.chat if (found := counts(r)) is not None] for picture in records]
        if any(pictures):
            for unit in ("phrases", "words"):
                sums = [sum((getattr(found, unit) for found in own), Retrieval(0, 0, 0)) for own in pictures]
                yield f"{source}: F1 of {unit}", f1(sums)
                yield f"{source}: precision of {unit}", precision(sums)
                yield f"{source}: recall of {unit}", recall(sums)


def _median_seconds(chat: Sequence[ChatRecord]) -> StageSeconds:
    paid = [record.seconds for record in chat if record.seconds.image > 0]

    def median(stage: str) -> float:
        values = [getattr(seconds, stage) for seconds in (paid if stage == "image" else [r.seconds for r in chat])]
        return statistics.median(values) if values else 0.0

    return StageSeconds(**{entry.name: median(entry.name) for entry in fields(StageSeconds)})


def _plain(figure: Figure) -> dict[str, Any]:
    """With rounded numbers and without NaN, which JSON lacks."""
    return {
        name: value if isinstance(value, int) else round(value, 5) if math.isfinite(value) else None
        for name, value in asdict(figure).items()
    }


def _cells(figure: Figure) -> tuple[str, str, str]:
    if math.isnan(figure.value):
        return "-", "-", str(figure.count)
    return f"{figure.value:.3f}", f"{figure.low:.3f} to {figure.high:.3f}", str(figure.count)
