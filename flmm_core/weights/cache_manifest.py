"""Manifests of cached files, which record their sources, so that no stale file is read.

A cache is a folder with a ``manifest.json``. This file is independent of the cached contents.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from flmm_core.common.output_files import written_file

MANIFEST_FILE = "manifest.json"


def require_manifest(folder: Path, made_from: Mapping[str, str | int | float]) -> None:
    """Create a folder for cached files, or check that the files in it have the same sources.

    Args:
        folder: made if it does not exist.
        made_from: everything that the cached files depend on, for instance fingerprints, counts and seeds.

    Raises:
        ValueError: the folder holds files of other or of unknown sources.
    """
    path = folder / MANIFEST_FILE
    if path.exists():
        require_equal(path, made_from, remedy=f"delete {folder} to recreate them")
        return
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise ValueError(f"{folder}: expected {MANIFEST_FILE} beside cached files, got none; delete {folder} to recreate them")
    write_record(path, made_from)


def require_equal(path: Path, record: Mapping[str, Any], *, remedy: str) -> None:
    """Check that a file of :func:`write_record` holds an equal record.

    Args:
        path: the file.
        record: expected, of any nesting.
        remedy: advice for the message of the error.

    Raises:
        ValueError: names the first entry that differs.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: expected JSON, got {error}; {remedy}") from error
    expected, got = dict(_entries(json.loads(_json(record)))), dict(_entries(found))
    for name in (*expected, *got):
        if name not in expected or name not in got or expected[name] != got[name]:
            wanted, given = (json.dumps(side[name]) if name in side else "no such entry" for side in (expected, got))
            raise ValueError(f"{path}: {name}: expected {wanted}, got {given}; {remedy}")


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record as JSON, atomically; values that JSON lacks, such as paths, are written as text."""
    with written_file(path) as temporary:
        temporary.write_text(_json(record), encoding="utf-8")


def _json(record: Mapping[str, Any]) -> str:
    return json.dumps(record, indent=2, default=str) + "\n"


def _entries(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Entries of nested objects by dotted names."""
    if isinstance(value, dict):
        for key, entry in value.items():
            yield from _entries(entry, f"{name}.{key}" if name else key)
    else:
        yield name, value
