"""Memory of the tensors in any object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


def tensor_bytes(kept: Any) -> int:
    """Bytes of all tensors in ``kept``, including those in containers and attributes; shared memory counts once."""
    storages = {}
    for tensor in _tensors(kept, set()):
        storage = tensor.untyped_storage()
        storages[tensor.device, storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _tensors(kept: Any, seen: set[int]) -> Iterator[Tensor]:
    if id(kept) in seen or kept is None or isinstance(kept, str | bytes | int | float | bool | type):
        return
    seen.add(id(kept))
    if isinstance(kept, Tensor):
        yield kept
        return
    if isinstance(kept, Mapping):
        parts = list(kept.values())
    elif isinstance(kept, list | tuple | set | frozenset):
        parts = list(kept)
    else:
        parts = list(vars(kept).values()) if hasattr(kept, "__dict__") else []
    for part in parts:
        yield from _tensors(part, seen)
