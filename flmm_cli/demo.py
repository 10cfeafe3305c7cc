"""`flmm demo`: shows the whole system at work on a simulated camera."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flmm_cli.counts import require_counts
from flmm_cli.json_files import write_json
from flmm_cli.node_options import add_node_options, node_arguments
from flmm_cli.table import format_table
from flmm_core.common.plain_text import printable

if TYPE_CHECKING:
    from flmm_demo.demo_run import Outcome, Pointing

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

CONTACT_SHEET = "contact_sheet.png"
LEAD = "lead.png"
ANSWERS = "answers.json"
LOGS = ("camera.log", "grounding.log", "pick.log")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "demo",
        help="ask a simulated robot camera a dozen things, over ROS",
        description="Starts a simulated robot camera and the grounding node as processes of their own, sends commands of"
        " every kind, prints what came back, and draws it. Exit status 0 if every command was answered.",
    )
    parser.add_argument("--count", type=int, default=13, help="commands (default: %(default)s)")
    parser.add_argument("--scenes", type=int, default=6, help="different scenes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=9, help="seed of scenes and questions (default: %(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("demo_output"),
        help="folder for images; those of an earlier demo go, other files stay (default: %(default)s)",
    )
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for a reply (default: %(default)g)")
    parser.add_argument(
        "--start-timeout", type=float, default=120.0, help="seconds for camera and model to start (default: %(default)g)"
    )
    add_node_options(parser)


def run(args: argparse.Namespace) -> int:
    """Ask, print, and draw; exit status 0 if every command was answered."""
    from flmm_demo import demo_run

    require_counts(args, "count", "scenes")
    os.environ.update(demo_run.demo_environment())
    args.out.mkdir(parents=True, exist_ok=True)
    remove_earlier(args.out, demo_run.KINDS)
    print(f"rendering {args.scenes} scenes ...", flush=True)
    asks = demo_run.plan(args.count, args.scenes, args.seed)
    domain = os.environ["ROS_DOMAIN_ID"]
    print(f"starting the camera and the grounding node in ROS domain {domain} (logs in {args.out}) ...", flush=True)
    began = time.monotonic()
    outcomes = demo_run.run_demo(
        asks,
        args.out,
        node_arguments(args),
        timeout=args.timeout,
        start_timeout=args.start_timeout,
        on_started=lambda seconds: print(f"both are ready after {seconds:.1f} s", flush=True),
        on_outcome=lambda outcome: print(f"  {printable(outcome.ask.text)}\n    {_answer_text(outcome)}", flush=True),
    )
    _draw(outcomes, args.out)
    print(f"\n{_table(outcomes)}\n\n{_summary(outcomes)}")
    print(f"{time.monotonic() - began:.0f} s; images: {args.out / CONTACT_SHEET}, {LEAD} and one for each command beside it")
    return 0 if len(outcomes) == args.count and all(outcome.answered for outcome in outcomes) else 1


def remove_earlier(out: Path, kinds: Sequence[str]) -> None:
    """Remove the files of an earlier demo, known by the names that a demo gives; folders and all other files stay.

    Args:
        out: an existing folder.
        kinds: of commands, as they stand in the names of images.
    """
    names = "|".join(re.escape(name) for name in (CONTACT_SHEET, LEAD, ANSWERS, *LOGS))
    image = rf"\d{{2,}}_({'|'.join(map(re.escape, kinds))})\.png"
    for path in out.iterdir():
        if re.fullmatch(f"{names}|{image}", path.name) and not path.is_dir():
            path.unlink()


def _answer_text(outcome: Outcome) -> str:
    """The answer, and what is wrong with it."""
    words = [printable(outcome.answer.text)] if outcome.answered else []
    words += [f"gripper: {outcome.picked}"] if outcome.picked else []
    return "\n".join([*words, f"WRONG, {printable(outcome.fault)}"] if outcome.fault else words)


def _table(outcomes: list[Outcome]) -> str:
    headers = ("#", "kind", "command", "answer", "phrase: score, IoU", *(f"{name} ms" for name in STAGES.values()))
    rows = []
    for number, outcome in enumerate(outcomes, start=1):
        phrases = "\n".join(f"{printable(pointing.phrase.text)}: {_facts(pointing)}" for pointing in outcome.pointings)
        stages = [f"{1000 * getattr(outcome.reply.durations, field):.0f}" for field in STAGES]
        command = printable(outcome.ask.text)
        rows.append((str(number), outcome.ask.turn.kind, command, _answer_text(outcome), phrases or "-", *stages))
    return format_table(headers, rows, width=max(shutil.get_terminal_size((180, 24)).columns, 140))


def _facts(pointing: Pointing) -> str:
    """As the legend of an image shows it."""
    state = "not there" if pointing.phrase.absent else f"{pointing.phrase.score:.2f}"
    return ", ".join(part for part in (state, _iou_text(pointing)) if part)


def _iou_text(pointing: Pointing) -> str:
    return "" if pointing.iou is None or pointing.phrase.absent else f"IoU {pointing.iou:.2f}"


def _summary(outcomes: list[Outcome]) -> str:
    ious = [pointing.iou for outcome in outcomes for pointing in outcome.pointings if pointing.iou is not None]
    answered = sum(outcome.answered for outcome in outcomes)
    right = sum(not outcome.fault for outcome in outcomes)
    mean = f"mean IoU of {len(ious)} masks {sum(ious) / len(ious):.2f}" if ious else "no masks"
    return f"{answered} of {len(outcomes)} commands answered, {right} right, {mean}"


def _draw(outcomes: list[Outcome], out: Path) -> None:
    """An overlay for each command, a contact sheet of all, an image of the best, and the figures as JSON."""
    from PIL import Image

    from flmm_core.drawing.overlay import contact_sheet, draw_overlay

    overlays = []
    for number, outcome in enumerate(outcomes, start=1):
        overlay = draw_overlay(
            outcome.image,
            outcome.answer,
            command=outcome.ask.text,
            fault=f"WRONG, {outcome.fault}" if outcome.fault else "",
            details=[_iou_text(pointing) for pointing in outcome.pointings],
        )
        Image.fromarray(overlay).save(out / f"{number:02d}_{outcome.ask.turn.kind}.png")
        overlays.append(overlay)
    Image.fromarray(contact_sheet(overlays)).save(out / CONTACT_SHEET)
    if leads := lead_answers(outcomes):
        Image.fromarray(contact_sheet([overlays[index] for index in leads])).save(out / LEAD)
    write_json(out / ANSWERS, [_record(outcome) for outcome in outcomes])


def lead_answers(outcomes: Sequence[Outcome]) -> list[int]:
    """Indices of the best answer with several phrases, the best relation and the best absence, as far as there are such."""

    def shown(index: int) -> list[float]:
        return [p.iou for p in outcomes[index].pointings if p.iou is not None and not p.phrase.absent]

    def goodness(index: int) -> tuple[bool, float, bool, int]:
        ious = shown(index)
        return not outcomes[index].fault, sum(ious) / max(1, len(ious)), outcomes[index].ask.turn.kind == "absence", -index

    chosen: list[int] = []
    turns = [outcome.ask.turn for outcome in outcomes]
    wanted = (
        [i for i, turn in enumerate(turns) if len(shown(i)) > 1 and turn.kind != "relation"],
        [i for i, turn in enumerate(turns) if shown(i) and turn.kind == "relation"],
        [i for i, turn in enumerate(turns) if outcomes[i].answered and turn.spans and not turn.present],
    )
    for candidates in wanted:
        chosen += [max(candidates, key=goodness)] if candidates else []
    return chosen


def _record(outcome: Outcome) -> dict[str, Any]:
    phrases = [
        {
            "text": pointing.phrase.text,
            "start": pointing.phrase.start,
            "end": pointing.phrase.end,
            "score": round(pointing.phrase.score, 4),
            "presence": round(pointing.phrase.presence, 4),
            "absent": pointing.phrase.absent,
            "iou": pointing.iou,
        }
        for pointing in outcome.pointings
    ]
    return {
        "seed": outcome.ask.seed,
        "kind": outcome.ask.turn.kind,
        "command": outcome.ask.text,
        "answer": outcome.answer.text,
        "true_answer": outcome.ask.turn.answer,
        "fault": outcome.fault,
        "gripper": outcome.picked,
        "reason": outcome.reply.reason,
        "phrases": phrases,
        "seconds": {field: round(getattr(outcome.reply.durations, field), 4) for field in STAGES},
    }
