"""What files of weights hold, without reading the weights: names, shapes and number formats."""

from __future__ import annotations

import json
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flmm_core.errors import LoadError

_BYTES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}
"""Of one number in the formats of safetensors; others have one byte."""
_NAMES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class StoredTensor:
    """One tensor in a file."""

    shape: tuple[int, ...]
    dtype: str
    """``float32``, ``bfloat16``, ...; formats that are no floats as safetensors calls them."""
    bytes: int

    @property
    def numbers(self) -> int:
        """How many."""
        return math.prod(self.shape)

    @classmethod
    def of_safetensors(cls, dtype: str, shape: list[int]) -> StoredTensor:
        """From an entry of a safetensors header."""
        return cls(tuple(shape), _NAMES.get(dtype, dtype), math.prod(shape) * _BYTES.get(dtype, 1))


def stored_tensors(path: Path) -> dict[str, StoredTensor]:
    """Tensors of a ``.safetensors`` file, or of a ``.pth`` or ``.bin`` file of PyTorch, by name.

    Raises:
        LoadError: the file holds something else.
    """
    if path.suffix == ".safetensors":
        header, _ = safetensors_header(path)
        return {name: StoredTensor.of_safetensors(entry["dtype"], entry["shape"]) for name, entry in header.items()}
    return {
        name: StoredTensor(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."), tensor.nbytes)
        for name, tensor in pickled_tensors(path).items()
    }


def safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    """Entries of a safetensors file, and the byte from which their offsets count.

    Raises:
        LoadError: the header does not fit into the file.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 2 <= length <= path.stat().st_size - 8:
            raise LoadError(f"{path}: expected a header inside the file, got a length of {length} bytes")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return header, 8 + length


def _can_be_mapped(path: Path) -> bool:
    """Not files of the old format, which are no archives, nor archives that are packed."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())


def pickled_tensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a file of PyTorch, flat or under ``state_dict``, mapped into memory: only what is looked at is read.

    Raises:
        LoadError: it holds something else.
    """
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=_can_be_mapped(path))
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise LoadError(f"{path}: expected a state dict of tensors, got {type(state).__name__} of something else")
    return state
