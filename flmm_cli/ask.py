"""`flmm ask`: sends one command to a running grounding node."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from flmm_cli.shared.outputs import add_output
from flmm_core.common.plain_text import printable

if TYPE_CHECKING:
    from flmm_ros.client import AskClient
    from flmm_ros.msg import GroundedAnswer


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = subparsers.add_parser(
        "ask",
        help="send a command to a running grounding node",
        description="Sends a command to a running grounding node and prints the answer and its phrases.",
    )
    parser.add_argument("text", help="the command, for instance 'what is on the table?'")
    parser.add_argument("--refer", action="store_true", help="the text is a phrase to ground, for instance 'the yellow mug'")
    parser.add_argument("--node", default="/grounding", help="full name of the node (default: %(default)s)")
    add_output(parser, "--out", output={"image": True}, help="write the node's overlay image to this file")
    parser.add_argument("--wait", type=float, default=10.0, help="seconds to wait for the node (default: %(default)g)")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for the reply (default: %(default)g)")


def run(args: argparse.Namespace) -> int:
    """Send, and print the reply; exit status 1 if it is a refusal."""
    from flmm_ros.client import AskClient
    from flmm_ros.msg import GroundedAnswer

    for name in ("wait", "timeout"):
        if not (seconds := getattr(args, name)) >= 0:  # also refuses NaN
            raise ValueError(f"--{name}: expected 0 seconds or more, got {seconds:g}")
    with AskClient(args.node) as client:
        overlays = client.collect_overlays() if args.out else []
        client.wait_for_node(args.wait)
        reply = client.ask(args.text, refer=args.refer, timeout=args.timeout)
        if reply.status != GroundedAnswer.STATUS_ANSWERED:
            print(f"refused: {printable(reply.reason)}")
            return 1
        _show(reply)
        if args.out:
            _save_overlay(client, overlays, reply, args.out)
    return 0


def _show(reply: GroundedAnswer) -> None:
    print(printable(reply.answer))
    for phrase in reply.phrases:
        roi = phrase.roi
        place = f"x {roi.x_offset}-{roi.x_offset + roi.width}, y {roi.y_offset}-{roi.y_offset + roi.height}"
        found = (
            f"not there (presence {phrase.presence:.2f})"
            if phrase.absent
            else f"{place if roi.width else 'no mask'}, score {phrase.score:.2f}"
        )
        at = phrase.location.centroid
        where = f", at x {at.x:.3f}, y {at.y:.3f}, z {at.z:.3f} m" if phrase.location.valid else ""
        print(f"  {printable(phrase.text)}: {found}{where}")
    print(f"  ({reply.durations.total:.2f} s)")


def _save_overlay(client: AskClient, overlays: list, reply: GroundedAnswer, out: Path) -> None:
    from flmm_core.images.files import write_image
    from flmm_ros.conversions import image_from_message

    def newest() -> object:
        return next((overlay for overlay in reversed(overlays) if overlay.header.stamp == reply.header.stamp), None)

    message = client.wait_until(newest, 10.0, "no overlay from the node within 10 s")
    write_image(out, image_from_message(message, 2**31 - 1), "ask")
    print(f"  overlay: {out}")
