"""Figures with intervals from the records of an evaluation, for tables and JSON."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from flmm_core.evaluation.metrics import (
    Figure,
    Retrieval,
    Tally,
    cumulative_iou,
    f1,
    figure_cells,
    mean_iou,
    precision,
    recall,
    share,
)
from flmm_core.evaluation.tabletop import ChatRecord, ImageRecord, MaskPair, PhraseRecord, SpanCounts
from flmm_core.images.masks import Overlap
from flmm_core.types import StageSeconds

KEPT_MISTAKES = 100
"""Largest number of wrong answers in a report."""


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

    images: int
    figures: dict[str, Figure]
    """Figures by name, in the order of the table."""
    seconds: StageSeconds
    """Medians over the questions, which depend on the machine. ``image`` is that of the questions that encoded an image."""
    mistakes: tuple[Mistake, ...]
    """The first wrong answers."""

    def record(self) -> dict[str, Any]:
        """Everything that does not depend on the machine, as an object for JSON; NaN becomes None."""
        rows = [{"figure": name, **plain_figure(figure)} for name, figure in self.figures.items()]
        return {"images": self.images, "rows": rows, "mistakes": [asdict(mistake) for mistake in self.mistakes]}

    def table(self) -> list[tuple[str, str, str, str]]:
        """Rows of name, value, 95 % interval and number of cases."""
        return [(name, *figure_cells(figure)) for name, figure in self.figures.items()]


def report_of(records: Sequence[ImageRecord]) -> TabletopReport:
    """Figures of an evaluation's records, one for each image."""
    chat = [record for image in records for record in image.chat]
    wrong = [Mistake(r.kind, r.question, r.truth, r.answer) for r in chat if not r.right]
    figures = {**dict(_answers(records)), **dict(_masks(records)), **dict(_presence(records)), **dict(_keywords(records))}
    return TabletopReport(len(records), figures, _median_seconds(chat), tuple(wrong[:KEPT_MISTAKES]))


def _answers(records: Sequence[ImageRecord]) -> Iterator[tuple[str, Figure]]:
    for kind in _kinds(records):
        yield f"answers: {kind}", share([Tally.of(r.right for r in image.chat if r.kind == kind) for image in records])
    yield "answers: all", share([Tally.of(r.right for r in image.chat) for image in records])


def _kinds(records: Sequence[ImageRecord]) -> list[str]:
    return list(dict.fromkeys(record.kind for image in records for record in image.chat))


def _masks(records: Sequence[ImageRecord]) -> Iterator[tuple[str, Figure]]:
    """Four rows for each selection of masks; chat is split by kind where a true answer names an object."""

    def right(image: ImageRecord) -> list[MaskPair]:
        return [r.masks for r in image.chat if r.right]

    def refer(image: ImageRecord, relational: bool) -> list[MaskPair]:
        return [r.masks for r in image.refer if r.relational == relational]

    chosen: dict[str, Callable[[ImageRecord], list[MaskPair]]] = {
        "right chat answers and refer names": lambda image: right(image) + refer(image, False),
        "chat": lambda image: [r.masks for r in image.chat],
        "chat, right answers": right,
        "refer": lambda image: [r.masks for r in image.refer],
        "refer, names": lambda image: refer(image, False),
        "refer, relations": lambda image: refer(image, True),
    }
    for name, masks_of in chosen.items():
        yield from _mask_figures(name, [masks_of(image) for image in records])
    for kind in _kinds(records):
        images = [[r.masks for r in image.chat if r.kind == kind] for image in records]
        if any(r.names_things for image in records for r in image.chat if r.kind == kind):
            yield from _mask_figures(f"chat, {kind}", images)


def _mask_figures(name: str, images: Sequence[Sequence[MaskPair]]) -> Iterator[tuple[str, Figure]]:
    stages: dict[str, list[list[Overlap]]] = {
        "U-Net": [[mask for pair in pairs for mask in pair.coarse] for pairs in images],
        "SAM": [[mask for pair in pairs for mask in pair.refined] for pairs in images],
    }
    for measure, figure in (("cIoU", cumulative_iou), ("mean IoU", mean_iou)):
        for stage, masks in stages.items():
            yield f"{name}: {measure}, {stage}", figure(masks)


def _presence(records: Sequence[ImageRecord]) -> Iterator[tuple[str, Figure]]:
    """Shares of absent objects without a mask, and of present objects that are not called absent."""

    def kept(phrases: Sequence[PhraseRecord]) -> Tally:
        return Tally.of(not phrase.called_absent for phrase in phrases if phrase.there)

    chat = [[phrase for r in image.chat for phrase in r.phrases] for image in records]
    refer = [[r.phrase for r in image.refer] for image in records]
    absence = [[r for r in image.chat if r.kind == "absence"] for image in records]
    unmasked = [Tally.of(not any(phrase.masked for phrase in r.phrases) for r in asked) for asked in absence]
    yield "absence without mask: chat", share(unmasked)
    yield "absence without mask: refer", share([Tally.of(not p.masked for p in phrases if not p.there) for phrases in refer])
    yield "present things kept: chat", share([kept(phrases) for phrases in chat])
    yield "present things kept: refer", share([kept(phrases) for phrases in refer])


def _keywords(records: Sequence[ImageRecord]) -> Iterator[tuple[str, Figure]]:
    sources: dict[str, Callable[[ChatRecord], SpanCounts | None]] = {
        "selector": lambda record: record.selector,
        "noun chunks": lambda record: record.chunks,
    }
    for source, counts in sources.items():
        images = [[found for r in image.chat if (found := counts(r)) is not None] for image in records]
        if any(images):
            for unit in ("phrases", "words"):
                sums = [sum((getattr(found, unit) for found in answers), Retrieval(0, 0, 0)) for answers in images]
                yield f"{source}: F1 of {unit}", f1(sums)
                yield f"{source}: precision of {unit}", precision(sums)
                yield f"{source}: recall of {unit}", recall(sums)


def _median_seconds(chat: Sequence[ChatRecord]) -> StageSeconds:
    encoded = [record.seconds for record in chat if record.seconds.image > 0]

    def median(stage: str) -> float:
        values = [getattr(seconds, stage) for seconds in (encoded if stage == "image" else [r.seconds for r in chat])]
        return statistics.median(values) if values else 0.0

    return StageSeconds(**{entry.name: median(entry.name) for entry in fields(StageSeconds)})


def plain_figure(figure: Figure) -> dict[str, Any]:
    """A figure as an object for JSON: rounded numbers, and None for NaN."""
    return {
        name: value if isinstance(value, int) else round(value, 5) if math.isfinite(value) else None
        for name, value in asdict(figure).items()
    }
