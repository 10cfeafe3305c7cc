"""Strict reading and writing of the folders and files of heads and SAMs.

A folder holds ``config.json``, which says its format, and ``model.safetensors``. Every failure is a
:class:`~flmm_core.errors.LoadError` of one line that names the file, what was expected and what was found.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flmm_core.common.output_files import replaced_folder
from flmm_core.errors import LoadError, explained
from flmm_core.weights.files import pickled_tensors

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
HUGGING_FACE_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja")
"""Patterns of the names of what ``save_pretrained`` writes."""
FORMAT_VERSION = 1


def require(path: Path, what: str) -> None:
    """Refuse a path that does not exist."""
    if not path.exists():
        raise LoadError(f"{what} {path}: expected an existing file or folder, got nothing there")


def load_strictly(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    what: str,
    source: Path,
    may_miss: tuple[str, ...] = (),
) -> None:
    """Copy weights of any float dtype into a module.

    Args:
        module: whose entries must be those of ``state``, with the same shapes.
        state: the weights.
        what: LMM, heads or SAM, for messages.
        source: the file, for messages.
        may_miss: prefixes of entries that may be missing.

    Raises:
        LoadError: entries are missing or unknown, or have another shape.
    """
    expected = module.state_dict()
    unknown = sorted(key for key in state if key not in expected)
    missing = sorted(key for key in expected if key not in state and not key.startswith(may_miss or ("\0",)))
    if unknown or missing:
        some = ", ".join((missing or unknown)[:3])
        kind = f"{len(missing)} entries are missing" if missing else f"{len(unknown)} entries are unknown"
        raise LoadError(f"{what} {source}: expected exactly the entries of this model, but {kind} ({some} ...)")
    for key, value in state.items():
        if expected[key].shape != value.shape:
            raise LoadError(f"{what} {source}: {key}: expected shape {list(expected[key].shape)}, got {list(value.shape)}")
    module.load_state_dict(dict(state), strict=False)


def read_pth(path: Path, what: str) -> dict[str, Tensor]:
    """Tensors of a ``.pth`` file, flat or nested under ``state_dict``."""
    with explained(what, path):
        return pickled_tensors(path)


def read_safetensors(path: Path, what: str) -> dict[str, Tensor]:
    """Tensors of a ``.safetensors`` file."""
    require(path, what)
    with explained(what, path):
        return load_file(path)


def read_config(folder: Path, kinds: Collection[str], what: str) -> tuple[str, dict[str, Any]]:
    """Format and other fields of a folder's ``config.json``."""
    path = folder / CONFIG_FILE
    fields = read_json(path, what)
    kind, version = fields.pop("format", None), fields.pop("version", None)
    if kind not in kinds or version != FORMAT_VERSION:
        known = " or ".join(sorted(kinds)) or "(none is registered)"
        raise LoadError(f"{what} {path}: expected format {known} version {FORMAT_VERSION}, got {kind} version {version}")
    return kind, fields


def read_json(path: Path, what: str) -> dict[str, Any]:
    """The object in a JSON file."""
    require(path, what)
    with explained(what, path):
        fields = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(fields, dict):
        raise LoadError(f"{what} {path}: expected an object, got {type(fields).__name__}")
    return fields


def write_folder(folder: Path, kind: str, config: Mapping[str, Any], state: Mapping[str, Tensor], dtype: torch.dtype) -> None:
    """Write format, config and weights in place of an earlier folder, whole or not at all.

    Raises:
        ValueError: the folder holds anything else.
    """
    fields = {"format": kind, "version": FORMAT_VERSION, **config}
    with replaced_folder(folder, (CONFIG_FILE, WEIGHTS_FILE), "result") as new:
        (new / CONFIG_FILE).write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")
        save_file({key: value.detach().to("cpu", dtype).contiguous() for key, value in state.items()}, new / WEIGHTS_FILE)
