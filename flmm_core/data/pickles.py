"""Converts the pickles of RefCOCO into JSON without executing code from them.

The unpickler accepts numbers, text, lists and dictionaries, and refuses everything else, code above all. Its memory is bounded
by the size of the file.
"""

from __future__ import annotations

import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flmm_core.common.output_files import write_text
from flmm_core.common.plain_text import one_line

_KEYS = ("ref_id", "ann_id", "image_id", "split", "sentences")


_PLAIN = (
    "MARK STOP POP POP_MARK DUP PROTO FRAME NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT BINFLOAT"
    " STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 LIST EMPTY_LIST APPEND APPENDS"
    " DICT EMPTY_DICT SETITEM SETITEMS PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET LONG_BINGET"
)
"""Instructions of a pickle of numbers, text, lists and dictionaries."""

_CODE = "GLOBAL STACK_GLOBAL INST"
"""Instructions that name code, which the unpickler refuses with the name."""

_SPREAD = 100
"""Largest ratio of what a pickle stands for to the size of its file; what is stored once can be referred to again and again."""


class _Instructions(dict[int, Callable[[Any], None]]):
    def __missing__(self, code: int) -> Callable[[Any], None]:
        raise pickle.UnpicklingError("holds something else than numbers, text, lists and dictionaries")


class _PlainUnpickler(pickle._Unpickler):
    """The unpickler of pickle that is written in Python.

    The one in C allocates its table of references for the largest number that the file states, whatever the file's size.
    """

    dispatch = _Instructions(
        {
            ord(getattr(pickle, name)): pickle._Unpickler.dispatch[ord(getattr(pickle, name))]
            for name in f"{_PLAIN} {_CODE}".split()
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"names the code {module}.{name}")


def read_refs(path: Path) -> list[dict[str, Any]]:
    """Read ``refs(*).p``; only plain data are accepted.

    Raises:
        ValueError: the file is damaged, refers to code, or holds something else.
    """
    if not path.is_file():
        raise ValueError(f"expected a pickle at {path}, got no regular file")
    content = path.read_bytes()
    try:
        # Written by Python 2, whose text is bytes.
        refs = _PlainUnpickler(io.BytesIO(content), encoding="utf-8", errors="replace").load()
        _require_plain(refs, _SPREAD * len(content))
    except Exception as error:  # a damaged pickle fails in many ways
        raise ValueError(f"{path}: expected a pickle of plain data, got one that {one_line(error)}") from error
    if not isinstance(refs, list) or not all(isinstance(ref, dict) and all(key in ref for key in _KEYS) for ref in refs):
        raise ValueError(f"{path}: expected a list of expressions with {', '.join(_KEYS)}, got something else")
    return refs


def _require_plain(value: Any, most: int) -> None:
    """Refuse values that JSON cannot hold, and what is larger than ``most`` values and characters when it is written out."""
    waiting = [value]
    while waiting:
        one = waiting.pop()
        most -= len(one) + 1 if isinstance(one, str) else 1
        if most < 0:
            raise ValueError("stands for far more than the file holds")
        if isinstance(one, dict):
            if not all(isinstance(key, str) for key in one):
                raise ValueError("has keys that are no text")
            waiting += [*one, *one.values()]
        elif isinstance(one, list):
            waiting += one
        elif isinstance(one, int) and abs(one) >= 2**63:
            raise ValueError("holds a number of more than 64 bits")


def convert_refs(folder: Path) -> list[Path]:
    """Write each ``*refs(*).p`` of a folder as JSON beside it.

    Returns:
        The files written.

    Raises:
        ValueError: there is no such file, or one cannot be used.
    """
    pickles = sorted(folder.glob("*refs(*).p"))
    if not pickles:
        raise ValueError(f"{folder}: expected refs(*).p, got a folder without")
    written = []
    for path in pickles:
        out = path.with_suffix(".json")
        write_text(out, json.dumps(read_refs(path)))
        written.append(out)
    return written
