"""Names of the files that the demo writes, and their removal before the next demo."""

from __future__ import annotations

import re
from pathlib import Path

from flmm_demo.commands import KINDS

CONTACT_SHEET = "contact_sheet.png"
LEAD = "lead.png"
ANSWERS = "answers.json"
LOGS = ("camera.log", "grounding.log", "pick.log")


def overlay_name(number: int, kind: str) -> str:
    """Of the image of a command, counted from 1; ``kind`` is one of :data:`~flmm_demo.commands.KINDS`."""
    return f"{number:02d}_{kind}.png"


def remove_earlier(out: Path) -> None:
    """Remove the files of an earlier demo, known by their names; folders and all other files stay.

    Args:
        out: an existing folder.
    """
    for path in earlier_files(out):
        path.unlink()


def earlier_files(out: Path) -> list[Path]:
    """Files in a folder that have names of this file; none if there is no such folder."""
    names = "|".join(re.escape(name) for name in (CONTACT_SHEET, LEAD, ANSWERS, *LOGS))
    image = rf"\d{{2,}}_({'|'.join(map(re.escape, KINDS))})\.png"
    entries = out.iterdir() if out.is_dir() else ()
    return [path for path in entries if re.fullmatch(f"{names}|{image}", path.name) and not path.is_dir()]
