"""Checksums of a model's weights as they lie in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from flmm_core.families import LoadedLmm


def weight_checksums(loaded: LoadedLmm) -> dict[str, str]:
    """SHA-256 of every byte of each weight and buffer in memory, by name; shared weights appear under each of their names.

    Not of ``state_dict``, as that makes bitsandbytes change the layout of quantized weights.
    """
    model = loaded.model
    tensors = dict([*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)])
    scales = {name: getattr(getattr(value, "quant_state", None), "absmax", None) for name, value in tensors.items()}
    tensors |= {f"{name}.absmax": value for name, value in scales.items() if value is not None}
    return {name: _checksum(value) for name, value in tensors.items()}


def _checksum(value: Tensor) -> str:
    data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(repr((value.dtype, tuple(value.shape))).encode() + b"\n" + data.tobytes()).hexdigest()


def total_checksum(checksums: Mapping[str, str]) -> str:
    """One SHA-256 for all names and checksums of :func:`weight_checksums`."""
    return hashlib.sha256(repr(sorted(checksums.items())).encode()).hexdigest()
