"""JSON files of data sets, what is looked up in them, and image folders; errors name the file."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flmm_core.common.plain_text import one_line


def read_json(path: Path, kind: type[dict] | type[list], *names: str) -> Any:
    """Read a JSON file.

    Args:
        path: of the file.
        kind: ``dict`` or ``list``.
        names: entries that a ``dict`` must have.

    Raises:
        ValueError: it is missing or damaged, or holds another type or other entries.
    """
    text = read_text(path)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"expected JSON at {path}, got a file that is none ({one_line(error)})") from error
    if not isinstance(value, kind):
        raise ValueError(f"{path}: expected a JSON {kind.__name__}, got {type(value).__name__}")
    for name in names:
        if name not in value:
            raise ValueError(f"{path}: expected an entry {name!r}, got none")
    return value


def read_text(path: Path) -> str:
    """Text in Unicode, with or without a byte order mark, or, like that of some releases, in Windows-1252.

    Raises:
        ValueError: there is no such file.
    """
    if not path.is_file():
        raise ValueError(f"expected a JSON file at {path}, got no such file")
    content = path.read_bytes()
    try:
        return content.decode(json.detect_encoding(content))
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def unique(records: Iterable[dict[str, Any]], *names: str) -> dict[tuple[Any, ...], dict[str, Any]]:
    """Records by the entries that identify them together, without those that cannot be told apart.

    Args:
        records: of a JSON file.
        names: of the entries.
    """
    listed = list(records)
    keys = [tuple(record.get(name) for name in names) for record in listed]
    doubled = repeated(keys)
    return {key: record for key, record in zip(keys, listed, strict=True) if key not in doubled}


def repeated(keys: Iterable[Any]) -> set[Any]:
    """Keys that occur more than once."""
    return {key for key, count in Counter(keys).items() if count > 1}


def require_unique(image: dict[str, Any], doubled: set[Any]) -> None:
    """Refuse an image whose number several images have, as their annotations cannot be told apart."""
    if image["id"] in doubled:
        raise ValueError(f"expected an id of its own, got several images with id {image['id']!r:.40}")


def find_words(text: str, words: str, start: int = 0) -> tuple[int, int]:
    """Character range of the first occurrence of words from ``start`` on, whatever their case; ``(-1, -1)`` if there is none.

    Lower case is not compared, as it can have more characters than the text.
    """
    match = re.compile(re.escape(words), re.IGNORECASE).search(text, start) if words else None
    return match.span() if match else (-1, -1)


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
