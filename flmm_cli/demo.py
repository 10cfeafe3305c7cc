"""`flmm demo`: shows the whole system at work on a simulated camera."""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flmm_cli.node_options import add_node_options, node_arguments
from flmm_cli.table import format_table
from flmm_core.plain_text import printable

if TYPE_CHECKING:
    from flmm_cli.demo_run import Outcome

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
ANSWERS = "answers.json"
LOGS = ("camera.log", "grounding.log")


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "demo",
        help="ask a simulated robot camera a dozen things, over ROS",
        description="Starts a simulated robot camera and the grounding node as processes of their own, sends commands of"
        " every kind, prints what came back, and draws it. Exit status 0 if every command was answered.",
    )
    parser.add_argument("--count", type=int, default=12, help="commands (default: %(default)s)")
    parser.add_argument("--scenes", type=int, default=6, help="different scenes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="seed of scenes and questions (default: %(default)s)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("demo_output"),
        help="folder for pictures; those of an earlier demo go, other files stay (default: %(default)s)",
    )
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for a reply (default: %(default)g)")
    parser.add_argument(
        "--start-timeout", type=float, default=120.0, help="seconds for camera and model to start (default: %(default)g)"
    )
    add_node_options(parser)


def run(args: argparse.Namespace) -> int:
    """Run the demo."""
    from flmm_cli import demo_run

    for name in ("count", "scenes"):
        if getattr(args, name) < 1:
            raise ValueError(f"--{name}: expected at least 1, got {getattr(args, name)}")
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
        on_outcome=lambda outcome: print(f"  {outcome.ask.text}\n    {_said(outcome)}", flush=True),
    )
    _draw(outcomes, args.out)
    print(f"\n{_table(outcomes)}\n\n{_summary(outcomes)}")
    print(f"{time.monotonic() - began:.0f} s; pictures: {args.out / CONTACT_SHEET} and one for each command beside it")
    return 0 if len(outcomes) == args.count and all(outcome.answered for outcome in outcomes) else 1


def remove_earlier(out: Path, kinds: Sequence[str]) -> None:
    """Remove the files of an earlier demo, known by the names that a demo gives; folders and all other files stay.

    Args:
        out: an existing folder.
        kinds: of questions, as they stand in the names of pictures.
    """
    names = "|".join(re.escape(name) for name in (CONTACT_SHEET, ANSWERS, *LOGS))
    picture = rf"\d{{2,}}_({'|'.join(map(re.escape, (*kinds, 'refer')))})\.png"
    for path in out.iterdir():
        if re.fullmatch(f"{names}|{picture}", path.name) and not path.is_dir():
            path.unlink()


def _said(outcome: Outcome) -> str:
    return printable(outcome.answer.text) if outcome.answered else f"REFUSED: {outcome.reply.reason}"


def _table(outcomes: list[Outcome]) -> str:
    headers = ("#", "kind", "command", "answer", "right", "phrase: score, IoU", *(f"{name} ms" for name in STAGES.values()))
    rows = []
    for number, outcome in enumerate(outcomes, start=1):
        phrases = "\n".join(
            f"{printable(phrase.text)}: {phrase.score:.2f}, {_iou_text(iou)}"
            for phrase, iou in zip(outcome.answer.phrases, outcome.ious, strict=True)
        )
        stages = [f"{1000 * getattr(outcome.reply.durations, field):.0f}" for field in STAGES]
        right = "-" if outcome.ask.refer else "yes" if outcome.right else "no"
        rows.append((str(number), outcome.ask.kind, outcome.ask.text, _said(outcome), right, phrases or "-", *stages))
    return format_table(headers, rows, width=max(shutil.get_terminal_size((180, 24)).columns, 140))


def _iou_text(iou: float | None) -> str:
    return "not there" if iou is None else f"{iou:.2f}"


def _summary(outcomes: list[Outcome]) -> str:
    ious = [iou or 0.0 for outcome in outcomes for iou in outcome.ious]
    answered = sum(outcome.answered for outcome in outcomes)
    spoken = [outcome for outcome in outcomes if not outcome.ask.refer]
    right = sum(outcome.right for outcome in spoken)
    mean = f"mean IoU of {len(ious)} masks {sum(ious) / len(ious):.2f}" if ious else "no masks"
    return f"{answered} of {len(outcomes)} commands answered, {right} of {len(spoken)} answers right, {mean}"


def _draw(outcomes: list[Outcome], out: Path) -> None:
    """An overlay for each command, a contact sheet of all, and the figures as JSON."""
    from PIL import Image

    from flmm_core.drawing.overlay import contact_sheet, draw_overlay

    overlays = []
    for number, outcome in enumerate(outcomes, start=1):
        overlay = draw_overlay(
            outcome.picture,
            outcome.answer,
            command=outcome.ask.text,
            refusal="" if outcome.answered else outcome.reply.reason,
            details=[f"IoU {_iou_text(iou)}" for iou in outcome.ious],
        )
        Image.fromarray(overlay).save(out / f"{number:02d}_{outcome.ask.kind}.png")
        overlays.append(overlay)
    Image.fromarray(contact_sheet(overlays)).save(out / CONTACT_SHEET)
    (out / ANSWERS).write_text(json.dumps([_record(outcome) for outcome in outcomes], indent=1))


def _record(outcome: Outcome) -> dict[str, Any]:
    phrases = [
        {"text": phrase.text, "start": phrase.start, "end": phrase.end, "score": round(phrase.score, 4), "iou": iou}
        for phrase, iou in zip(outcome.answer.phrases, outcome.ious, strict=True)
    ]
    return {
        "seed": outcome.ask.seed,
        "kind": outcome.ask.kind,
        "command": outcome.ask.text,
        "answer": outcome.answer.text,
        "true_answer": outcome.ask.turn.answer,
        "right": outcome.right,
        "reason": outcome.reply.reason,
        "phrases": phrases,
        "seconds": {field: round(getattr(outcome.reply.durations, field), 4) for field in STAGES},
    }
