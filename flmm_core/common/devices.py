"""The device to compute on, and the LMM's number format."""

from __future__ import annotations

import torch

from flmm_core.config import GroundingConfig
from flmm_core.errors import DeviceError


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
