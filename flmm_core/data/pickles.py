"""Converts the pickles of RefCOCO into JSON without executing code from them.

The unpickler accepts numbers, text, lists and dictionaries, and refuses every reference to code.
"""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

from flmm_core.common.plain_text import one_line

_KEYS = ("ref_id", "ann_id", "image_id", "split", "sentences")


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"names the code {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("refers to something outside")


def read_refs(path: Path) -> list[dict[str, Any]]:
    """Read ``refs(*).p``; only plain data are accepted.

    Raises:
        ValueError: the file is damaged, refers to code, or holds something else.
    """
    try:
        # Written by Python 2, whose text is bytes.
        refs = _PlainUnpickler(io.BytesIO(path.read_bytes()), encoding="utf-8", errors="replace").load()
    except Exception as error:  # a damaged pickle fails in many ways
        raise ValueError(f"{path}: expected a pickle of plain data, got one that {one_line(error)}") from error
    if not isinstance(refs, list) or not all(isinstance(ref, dict) and all(key in ref for key in _KEYS) for ref in refs):
        raise ValueError(f"{path}: expected a list of expressions with {', '.join(_KEYS)}, got something else")
    return refs


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
        temporary = out.with_suffix(".tmp")
        temporary.write_text(json.dumps(read_refs(path)))
        temporary.replace(out)
        written.append(out)
    return written
