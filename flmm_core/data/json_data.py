"""JSON files and image folders of data sets, read with errors that name the file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def read_json(path: Path, kind: type[dict] | type[list], *names: str) -> Any:
    """Read a JSON file in UTF-8 or, like some releases, in Windows-1252.

    Args:
        path: of the file.
        kind: ``dict`` or ``list``.
        names: entries that a ``dict`` must have.

    Raises:
        ValueError: it is missing or damaged, or holds another type or other entries.
    """
    if not path.is_file():
        raise ValueError(f"expected a JSON file at {path}, got no such file")
    content = path.read_bytes()
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError:
        text = content.decode("cp1252", errors="replace")
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON at {path}, got a file that is none ({error})") from error
    if not isinstance(value, kind):
        raise ValueError(f"{path}: expected a JSON {kind.__name__}, got {type(value).__name__}")
    for name in names:
        if name not in value:
            raise ValueError(f"{path}: expected an entry {name!r}, got none")
    return value


def images_folder(candidates: Sequence[Path], what: str) -> Path:
    """The first folder that exists.

    Args:
        candidates: usual places of the images.
        what: the data set, for the message.

    Raises:
        ValueError: none exists.
    """
    for folder in candidates:
        if folder.is_dir():
            return folder
    raise ValueError(f"images of {what}: expected them in one of {', '.join(map(str, candidates))}, got none of these folders")
