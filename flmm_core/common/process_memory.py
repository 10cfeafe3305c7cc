"""Memory of a process, and how to return what was freed to the GPU and to the system."""

from __future__ import annotations

import ctypes
import gc
import os
from pathlib import Path

import torch


def resident_bytes(pid: int | None = None) -> int:
    """Bytes that a process occupies in physical memory, as Linux reports it.

    Args:
        pid: of the process; None for the calling one.

    Raises:
        OSError: there is no such process.
    """
    pages = Path(f"/proc/{'self' if pid is None else pid}/statm").read_text(encoding="ascii").split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def peak_resident_bytes() -> int:
    """The most bytes that the calling process occupied in physical memory since its start, or since it was reset."""
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM:"))


def release_memory() -> None:
    """Return freed memory to the GPU and to the system; PyTorch and the C library would keep it for later allocations."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)
