"""What the demo prints, draws and writes about its outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flmm_core.common.plain_text import printable
from flmm_core.drawing.overlay import contact_sheet, draw_overlay
from flmm_core.images.files import write_image
from flmm_demo.files import CONTACT_SHEET, LEAD, overlay_name
from flmm_demo.truth import CheckedPhrase, Outcome

STAGES = {
    "waiting": "wait",
    "conversion": "conv",
    "image": "image",
    "lmm": "lmm",
    "keywords": "words",
    "mask_head": "unet",
    "refiner": "sam",
    "total": "total",
}
"""Fields of StageDurations and their column headers."""


def answer_text(outcome: Outcome) -> str:
    """The answer, the result of a grasp, and what is wrong, one line each."""
    lines = [printable(outcome.answer.text)] if outcome.answered else []
    lines += [f"gripper: {outcome.grasp}"] if outcome.grasp else []
    lines += [f"WRONG, {printable(outcome.fault)}"] if outcome.fault else []
    return "\n".join(lines)


def table_headers() -> tuple[str, ...]:
    """Headers of :func:`table_rows`."""
    return ("#", "kind", "command", "answer", "phrase: score, IoU", *(f"{name} ms" for name in STAGES.values()))


def table_rows(outcomes: Sequence[Outcome]) -> list[tuple[str, ...]]:
    """Cells of a row for each outcome."""
    rows = []
    for number, outcome in enumerate(outcomes, start=1):
        phrases = "\n".join(f"{printable(checked.phrase.text)}: {_result(checked)}" for checked in outcome.phrases)
        stages = [f"{1000 * getattr(outcome.reply.durations, field):.0f}" for field in STAGES]
        command = printable(outcome.command.text)
        rows.append((str(number), outcome.command.turn.kind, command, answer_text(outcome), phrases or "-", *stages))
    return rows


def _result(checked: CheckedPhrase) -> str:
    """Score or absence, and IoU."""
    state = "not there" if checked.phrase.absent else f"{checked.phrase.score:.2f}"
    return ", ".join(part for part in (state, _iou_text(checked)) if part)


def _iou_text(checked: CheckedPhrase) -> str:
    return "" if checked.iou is None or checked.phrase.absent else f"IoU {checked.iou:.2f}"


def summary(outcomes: Sequence[Outcome]) -> str:
    """How many commands were answered and right, and the mean IoU, on one line."""
    ious = [checked.iou for outcome in outcomes for checked in outcome.phrases if checked.iou is not None]
    answered = sum(outcome.answered for outcome in outcomes)
    right = sum(not outcome.fault for outcome in outcomes)
    mean = f"mean IoU of {len(ious)} masks {sum(ious) / len(ious):.2f}" if ious else "no masks"
    return f"{answered} of {len(outcomes)} commands answered, {right} right, {mean}"


def draw(outcomes: Sequence[Outcome], out: Path) -> None:
    """Write an overlay for each command, a contact sheet of all of them, and one of the best.

    Args:
        outcomes: at least one.
        out: an existing folder.
    """
    overlays = []
    for number, outcome in enumerate(outcomes, start=1):
        overlay = draw_overlay(
            outcome.image,
            outcome.answer,
            command=outcome.command.text,
            fault=f"WRONG, {outcome.fault}" if outcome.fault else "",
            details=[_iou_text(checked) for checked in outcome.phrases],
        )
        write_image(out / overlay_name(number, outcome.command.turn.kind), overlay, "demo")
        overlays.append(overlay)
    write_image(out / CONTACT_SHEET, contact_sheet(overlays), "demo")
    if leads := lead_answers(outcomes):
        write_image(out / LEAD, contact_sheet([overlays[index] for index in leads]), "demo")


def lead_answers(outcomes: Sequence[Outcome]) -> list[int]:
    """Indices of the best answer with several phrases, the best relation and the best absence, if there are such."""

    def ious(index: int) -> list[float]:
        return [c.iou for c in outcomes[index].phrases if c.iou is not None and not c.phrase.absent]

    def goodness(index: int) -> tuple[bool, float, bool, int]:
        mean = sum(ious(index)) / max(1, len(ious(index)))
        return not outcomes[index].fault, mean, outcomes[index].command.turn.kind == "absence", -index

    chosen: list[int] = []
    turns = [outcome.command.turn for outcome in outcomes]
    wanted = (
        [i for i, turn in enumerate(turns) if len(ious(i)) > 1 and turn.kind != "relation"],
        [i for i, turn in enumerate(turns) if ious(i) and turn.kind == "relation"],
        [i for i, turn in enumerate(turns) if outcomes[i].answered and turn.spans and not turn.present],
    )
    for candidates in wanted:
        chosen += [max(candidates, key=goodness)] if candidates else []
    return chosen


def record(outcome: Outcome) -> dict[str, Any]:
    """An outcome as JSON."""
    phrases = [
        {
            "text": checked.phrase.text,
            "start": checked.phrase.start,
            "end": checked.phrase.end,
            "score": round(checked.phrase.score, 4),
            "presence": round(checked.phrase.presence, 4),
            "absent": checked.phrase.absent,
            "iou": checked.iou,
        }
        for checked in outcome.phrases
    ]
    return {
        "seed": outcome.command.seed,
        "kind": outcome.command.turn.kind,
        "command": outcome.command.text,
        "answer": outcome.answer.text,
        "true_answer": outcome.command.turn.answer,
        "fault": outcome.fault,
        "gripper": outcome.grasp,
        "reason": outcome.reply.reason,
        "phrases": phrases,
        "seconds": {field: round(getattr(outcome.reply.durations, field), 4) for field in STAGES},
    }
