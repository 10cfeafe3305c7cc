"""Files and folders that are written whole or not at all (aside first, then renamed), and the marks of what commands wrote.

What is written has the permissions that the user's umask gives, whatever the library that wrote it chose.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_LOOK = 1 << 16
"""Bytes at the beginning and at the end of a file in which a mark is looked for."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of writing that name no file."""
_STALE = 3600.0
"""Age in seconds from which the folder of a writer that was killed is deleted."""


def mark(command: str) -> str:
    """What files that a command wrote carry: in a comment, in the metadata of an image, or as an entry ``written_by``."""
    return f"written by flmm {command}"


def is_marked(path: Path, command: str) -> bool:
    """Whether a file carries the mark of a command near its beginning or end."""
    pattern = re.compile(rb"(?i)written.by\W+flmm %b\b" % command.encode(), re.DOTALL)
    if not path.is_file():
        return False
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        return any(file.seek(start) >= 0 and pattern.search(file.read(_LOOK)) for start in (0, max(0, size - _LOOK)))


@contextmanager
def written_file(path: Path) -> Iterator[Path]:
    """A path to write instead of ``path``: it is renamed to it at the end, or deleted if that fails.

    Folders above the file are made. A link keeps pointing to the file that is written. Devices and pipes are written directly.

    Raises:
        OSError: it cannot be written; names ``path``.
    """
    if path.exists() and not path.is_file():
        yield path
        return
    target = path.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{secrets.token_hex(8)}{target.suffix}")
    try:
        yield temporary
        temporary.replace(target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and (error.errno in _FULL or str(error.filename) == str(temporary)):
            error.filename, error.filename2 = str(path), None
        raise


def write_text(path: Path, text: str) -> None:
    """Write a file as :func:`encoded`, whole or not at all."""
    with written_file(path) as temporary:
        temporary.write_bytes(encoded(text))


def encoded(text: str) -> bytes:
    """Text in UTF-8; bytes of file names in another encoding become escapes, as in JSON."""
    return text.encode("utf-8", "backslashreplace")


def require_replaceable(out: Path, ours: Collection[str], what: str) -> None:
    """Refuse a folder that holds anything beside an earlier result.

    Args:
        out: the folder; it may not exist.
        ours: patterns of the names in a result.
        what: the result, for the message.

    Raises:
        ValueError: names the first other entry.
    """
    try:
        others = sorted(entry.name for entry in out.iterdir() if not any(entry.match(name) for name in ours))
    except FileNotFoundError:  # there is none, or another process replaces it now
        return
    except NotADirectoryError as error:
        raise ValueError(f"{out}: expected a folder, got a file") from error
    if others:
        raise ValueError(f"{out}: expected a folder that is empty or holds an earlier {what}, got one with {others[0]}")


@contextmanager
def replaced_folder(out: Path, ours: Collection[str], what: str) -> Iterator[Path]:
    """A folder to write instead of ``out``: it replaces it at the end, or is deleted if that fails.

    Args: as for :func:`require_replaceable`.

    Raises:
        ValueError: ``out`` holds anything beside an earlier result.
    """
    require_replaceable(out, ours, what)
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    _remove_stale(out)
    folder = _beside(out)
    folder.mkdir()
    try:
        yield folder
        readable = folder.stat().st_mode & 0o666
        for file in folder.rglob("*"):
            if file.is_file():
                file.chmod(readable)
        require_replaceable(out, ours, what)
        _swap(folder, out)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def _swap(folder: Path, out: Path) -> None:
    """Rename a folder to ``out`` and delete what was there; another process may do the same at the same time."""
    earlier: list[Path] = []
    while not _renamed(folder, out):
        earlier.append(_beside(out))
        with suppress(FileNotFoundError):
            out.rename(earlier[-1])
    for one in earlier:
        shutil.rmtree(one, ignore_errors=True)


def _renamed(folder: Path, out: Path) -> bool:
    """Rename a folder; False if a folder that is not empty has that name."""
    try:
        folder.rename(out)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def _remove_stale(out: Path) -> None:
    """Delete what processes that were killed have left beside ``out``."""
    pattern = re.compile(rf"\.{re.escape(out.name)}\.[0-9a-f]{{16}}")
    for entry in out.parent.iterdir():
        with suppress(FileNotFoundError):
            if pattern.fullmatch(entry.name) and time.time() - entry.stat().st_mtime > _STALE:
                shutil.rmtree(entry, ignore_errors=True)


def _beside(out: Path) -> Path:
    return out.with_name(f".{out.name}.{secrets.token_hex(8)}")
