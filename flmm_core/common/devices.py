"""The device to compute on, and the LMM's number format."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from flmm_core.config import GroundingConfig
from flmm_core.errors import DeviceError, LoadError

_SHARE = 0.75
"""Share of a GPU's free memory for weights of the LMM; the rest is for keys and values, maps, SAM, heads and working memory."""


def resolve_device(config: GroundingConfig) -> tuple[torch.device, torch.dtype]:
    """The device and the number format that a configuration selects.

    Raises:
        DeviceError: this machine has no such device; see :func:`check_device`.
    """
    name = config.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DeviceError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}") from error
    check_device(device)
    if config.dtype == "auto":
        return device, torch.bfloat16 if device.type == "cuda" else torch.float32
    return device, getattr(torch, config.dtype)


def check_device(device: torch.device) -> None:
    """Refuse a device that this machine does not have, before a model is loaded for it.

    Raises:
        DeviceError: names the available devices.
    """
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"device: expected auto, cpu, cuda or cuda:N, got {str(device)!r}")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device.type == "cuda" and (device.index or 0) >= count:
        available = ", ".join(["cpu", *(f"cuda:{i}" for i in range(count))])
        raise DeviceError(f"device: expected one that this machine has ({available}), got {str(device)!r}")


def free_memory() -> tuple[int, ...]:
    """Free bytes of each GPU of this machine."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return tuple(torch.cuda.mem_get_info(i)[0] for i in range(count))


def room_for_weights(weights: int, free: Sequence[int]) -> dict[int, int] | None:
    """Over which GPUs to spread an LMM.

    Args:
        weights: bytes of the LMM's weights.
        free: bytes of each GPU.

    Returns:
        Most bytes of weights on each GPU by its number; None if the first one holds them all, or is the only one.

    Raises:
        LoadError: all GPUs together cannot hold them.
    """
    room = {number: int(_SHARE * memory) for number, memory in enumerate(free)}
    if len(room) < 2 or weights <= room[0]:
        return None
    if weights > sum(room.values()):
        raise LoadError(
            f"device auto: expected GPUs with room for {weights / 1e9:.1f} GB of weights, got {sum(room.values()) / 1e9:.1f} GB"
            f" ({_SHARE:.0%} of the free memory of {len(room)}); try quantization int8 or int4"
        )
    return room


def is_spread(model: nn.Module) -> bool:
    """Whether the layers of a model of transformers are on several devices."""
    return len(set(getattr(model, "hf_device_map", {}).values())) > 1
