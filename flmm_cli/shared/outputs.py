"""What commands write: never over an input, and over what the command did not write itself only with ``--force``.

A command declares its outputs by :func:`add_output`; `flmm` checks them all by :func:`check_outputs` before the command runs,
so that no answer is lost to a path that cannot be written. What is written carries a mark, see
:func:`~flmm_core.common.output_files.mark`. For a file of text, ``-`` is standard output, which then holds nothing else.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flmm_core.common.output_files import encoded, is_marked, write_text

SOURCES = ("data", "engines", "heads", "lmm", "model", "params_file", "sam", "source", "val")
"""Options that are text and may name a file or folder to read."""

STANDARD_OUTPUT = Path("-")


@dataclass(frozen=True)
class Output:
    """An option that names what a command writes."""

    name: str
    """As it stands on the command line."""
    dest: str
    folder: bool = False
    image: bool = False
    """Whether the name's end chooses a format of images."""
    binary: bool = False
    """Whether it is a file of neither text nor image."""
    guarded: bool = False
    """Whether the command itself refuses, in any case, a folder with other files."""
    entries: Callable[[argparse.Namespace, Path], Iterable[Path]] = lambda args, path: [path]
    """What the command may write over, if it exists, for the path that was given."""
    own: Callable[[Path, str], bool] | None = None
    """Whether the command wrote a whole folder, by folder and command; None: each entry carries a mark or not."""
    used: Callable[[argparse.Namespace], bool] = lambda args: True
    """Whether it is written at all."""

    @property
    def text(self) -> bool:
        """Whether it is one file of text."""
        return not (self.folder or self.image or self.binary)


def whole_folder(_: argparse.Namespace, folder: Path) -> Iterable[Path]:
    """Entry of a folder that belongs to one command, unless it is empty."""
    return [folder] if folder.is_dir() and any(folder.iterdir()) else []


def add_output(parser: argparse.ArgumentParser, name: str, *, output: dict[str, Any] | None = None, **options: Any) -> None:
    """Declare an option, or an argument, that names what the command writes.

    Args:
        parser: of the command; it also gets ``--force``.
        name: of the option.
        output: fields of its :class:`Output`.
        options: for ``add_argument``.
    """
    action = parser.add_argument(name, type=Path, **options)
    declared, one = parser.get_default("outputs") or (), Output(name, action.dest, **(output or {}))
    if one.text:
        action.help = f"{action.help}; -: to standard output"
    parser.set_defaults(outputs=(*declared, one))
    if parser.get_default("force") is None and not one.guarded:
        parser.add_argument("--force", action="store_true", help="write over files that this command did not write")


def check_outputs(args: argparse.Namespace) -> None:
    """Refuse outputs that cannot be written, that are inputs, or that the command did not write.

    Raises:
        ValueError: names the option, what was expected and what was found.
    """
    outputs = _given(args)
    inputs = _inputs(args)
    seen: dict[Path, str] = {}
    for output in outputs:
        path: Path = getattr(args, output.dest)
        _check_place(output, path)
        for entry in () if output.guarded else output.entries(args, path):
            if (other := seen.setdefault(entry.resolve(), output.name)) != output.name:
                raise ValueError(f"{output.name}: expected another file than {other}, got {path}")
            if path != STANDARD_OUTPUT and (entry.is_file() or entry.is_dir()):
                _check_entry(args, output, entry, inputs)


@contextmanager
def standard_output_kept(args: argparse.Namespace) -> Iterator[None]:
    """Print to standard error instead of standard output while a command runs that writes a file to the latter."""
    if any(getattr(args, output.dest) == STANDARD_OUTPUT for output in _given(args)):
        with redirect_stdout(sys.stderr):
            yield
    else:
        yield


def write_output(path: Path, text: str) -> None:
    """Write a file of UTF-8, whole or not at all, or ``-``, standard output."""
    if path == STANDARD_OUTPUT and sys.__stdout__ is not None:
        sys.__stdout__.buffer.write(encoded(text))
        sys.__stdout__.buffer.flush()
    else:
        write_text(path, text)


def _given(args: argparse.Namespace) -> list[Output]:
    """Outputs that the command will write."""
    return [one for one in getattr(args, "outputs", ()) if getattr(args, one.dest) is not None and one.used(args)]


def _check_place(output: Output, path: Path) -> None:
    """Refuse a path of another kind, of an unknown format, or that cannot be written."""
    if path == STANDARD_OUTPUT:
        if not output.text:
            raise ValueError(f"{output.name}: expected a path, got -, standard output, which is for files of text only")
        return
    if path.exists() and path.is_dir() != output.folder:
        kinds = ("a folder", "a file") if output.folder else ("a file", "a folder")
        raise ValueError(f"{output.name}: expected {kinds[0]}, got {path}, which is {kinds[1]}")
    if output.image:
        from PIL import Image

        formats = {end for end, name in Image.registered_extensions().items() if name in Image.SAVE}
        if path.suffix.lower() not in formats:
            raise ValueError(f"{output.name}: expected a name that ends as an image's, such as .png or .jpg, got {path}")
    place = path if output.folder else path.absolute().parent
    if path.exists() and not path.is_file() and not output.folder:  # a device or a pipe
        place = path
    while not place.exists():
        place = place.absolute().parent
    if not place.is_dir() and place != path:
        raise ValueError(f"{output.name}: expected a path in a folder, got {path}, where {place} is a file")
    if not os.access(place, os.W_OK):
        raise ValueError(f"{output.name}: expected a place that can be written, got {path}, where {place} cannot")


def _check_entry(args: argparse.Namespace, output: Output, entry: Path, inputs: list[Path]) -> None:
    """Refuse to write over an input, or over what the command did not write."""
    own = output.own(entry, args.command) if output.own else is_marked(entry, args.command)
    for given in inputs:
        if entry.samefile(given) or (given.is_dir() and not own and given.resolve() in entry.resolve().parents):
            raise ValueError(f"{output.name}: expected another path than what is read, got {entry}, an input of the command")
    if not own and not args.force:
        kind = "a folder" if entry.is_dir() else "a file"
        raise ValueError(
            f"{output.name}: expected a new path, or {kind} that `flmm {args.command}` wrote, got {entry}; name another, or"
            " write over it with --force"
        )


def _inputs(args: argparse.Namespace) -> list[Path]:
    """Files and folders that a command reads."""
    written = {output.dest for output in getattr(args, "outputs", ())}
    found: list[Path] = []
    for name, value in vars(args).items():
        if name in written:
            continue
        for one in value if isinstance(value, list | tuple) else (value,):
            if isinstance(one, Path):
                found.append(one)
            elif isinstance(one, str) and one and name in SOURCES:
                folder = one.split("=", 1)[-1]
                found += [Path(one), Path(folder), Path(folder.rsplit("@", 1)[0])]
    return [path for path in found if path.exists()]
