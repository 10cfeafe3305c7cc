"""Finds the cases of reference data and reads their files; see ``flmm_core/verification/verify.py``.

This file reports missing and damaged files. It compares nothing and runs no model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from flmm_core.errors import explained
from flmm_core.images.files import FORMATS

HEADS = "flmm_heads.pth"
MANIFEST = "manifest.json"
_WHAT = "reference data"
_SHARED = "sam.model.mask_decoder."
"""Prefix of entries of heads that several cases share."""


def cases(folders: Sequence[Path]) -> list[Path]:
    """Absolute paths of the folders with a manifest: those given, or their subfolders.

    Raises:
        ValueError: a folder is not a case and contains none.
    """
    found = []
    for folder in folders:
        whole = folder.expanduser().resolve()
        inside = sorted(path.parent for path in whole.glob(f"*/{MANIFEST}"))
        own = [whole] if (whole / MANIFEST).is_file() else inside
        if not own:
            raise ValueError(f"{folder}: expected reference data (a {MANIFEST}, here or one folder below), got none")
        found += own
    return found


def arrays(path: Path) -> dict[str, np.ndarray]:
    """Tensors of an ``.npz`` file."""
    with explained(_WHAT, _required(path)), np.load(path) as file:
        return dict(file)


def fields(path: Path) -> dict[str, Any]:
    """Entries of a JSON file."""
    with explained(_WHAT, _required(path)):
        read = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(read, dict):
        raise ValueError(f"{_WHAT} {path}: expected an object, got {type(read).__name__}")
    return read


def manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a case.

    Raises:
        ValueError: its attention was not averaged over the tokens of a phrase, as the published heads expect it.
    """
    read = fields(folder / MANIFEST)
    merge = read.get("config", {}).get("merge", "mean")
    if merge != "mean":
        raise ValueError(f"{_WHAT} {folder / MANIFEST}: config.merge: expected mean, got {merge}")
    return read


def image(folder: Path, name: str) -> Image.Image:
    """RGB image of a sample."""
    path = _required(folder / f"{name}.png")
    with explained(_WHAT, path):
        return Image.open(path, formats=FORMATS).convert("RGB")


def sam_file(folder: Path) -> Path:
    """The SAM of a case: the one named in its manifest, or the first one in or beside the case's folder."""
    listed = manifest(folder)
    named = [name for name in [*listed.get("files", {}), *listed.get("sha256", {})] if name.endswith(".pth")]
    given = [folder / name for name in named if Path(name).name.startswith("sam")]
    near = [*sorted(folder.glob("sam*.pth")), *sorted(folder.parent.glob("sam*.pth"))]
    if not (given or near):
        raise ValueError(f"{_WHAT} {folder}: expected a SAM that the manifest names, such as ../sam_tiny.pth, got none")
    return _required((given or near)[0])


def heads_file(folder: Path, scratch: Path) -> Path:
    """The complete heads of a case.

    Parts of SAM that cases share are taken from the case that the manifest names, or else from any neighbouring case.

    Args:
        folder: the case.
        scratch: folder for completed heads.
    """
    own = _required(folder / HEADS)
    state = _weights(own)
    if any(key.startswith(_SHARED) for key in state):
        return own
    named = re.findall(rf"\.\./[\w-]+/{re.escape(HEADS)}", json.dumps(manifest(folder)))
    others = [path for name in named if (path := folder / name).is_file()]
    for other in [*others, *sorted(folder.parent.glob(f"*/{HEADS}"))]:
        whole = _weights(other)
        if any(key.startswith(_SHARED) for key in whole):
            state.update({key: value for key, value in whole.items() if key.startswith("sam.")})
            torch.save(state, scratch / HEADS)
            return scratch / HEADS
    wanted = named[0] if named else f"a {HEADS} in a folder beside it"
    raise ValueError(f"heads {own}: expected {_SHARED}* in it or in {wanted}, got none")


def _weights(path: Path) -> dict[str, Any]:
    with explained("heads", path):
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    return state.get("state_dict", state)


def _required(path: Path) -> Path:
    if not path.is_file():
        raise ValueError(f"{_WHAT} {path.parent}: expected a file {path.name}, got none")
    return path
