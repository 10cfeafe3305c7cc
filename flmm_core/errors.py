"""Errors that callers tell apart, one type for each cause, and the translation of what libraries raise into them.

Every message is one line that names the file, says what was expected and got, and, where the file is not to blame, what to do.
"""

from __future__ import annotations

import errno
import pickle
import socket
import ssl
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError


class CommandError(ValueError):
    """The words of a command cannot be used; the model and the image are not to blame."""


class CommandCancelledError(Exception):
    """Whoever gave the command does not want its answer any more."""


class MemoryFullError(RuntimeError):
    """A command needs more memory than the device has left; what was kept of images is freed, and the next command may fit."""


class LoadError(ValueError):
    """A file that cannot be used, and why, on one line."""


class DeviceError(ValueError):
    """A device that there is not, or that does not answer, on one line."""


class EngineError(LoadError):
    """An exported network that cannot be used or made, and why, on one line."""


class InsufficientMemoryError(LoadError):
    """The model does not fit into the memory of the GPU or of the machine."""


class HubUnreachableError(LoadError):
    """A model of the Hugging Face Hub is not downloaded yet, and the Hub does not answer."""


class GatedModelError(LoadError):
    """A model of the Hub whose owner has to give access first."""


class UnknownModelError(LoadError):
    """The Hub has no model of that name, or not for this user."""


_DAMAGED = (
    OSError, ValueError, TypeError, RuntimeError, EOFError, KeyError, AttributeError,
    SafetensorError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What reading a damaged file, or one of another kind, raises."""

_UNREACHABLE = (
    HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, TimeoutError, socket.gaierror, ssl.SSLError,
)  # fmt: skip

_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "Cannot allocate memory")
"""Of the RuntimeErrors of CUDA, of PyTorch's allocators on the CPU, and of mmap."""


@contextmanager
def explained(what: str, source: str | Path) -> Iterator[None]:
    """Turn the many ways in which loading fails into one line.

    Args:
        what: LMM, heads or SAM.
        source: its file, its folder, or its name on the Hub.

    Raises:
        LoadError: of the type that the cause has.
        DeviceError: the GPU refused to work, for another reason than its memory.
    """
    try:
        yield
    except LoadError:
        raise
    except Exception as error:
        refusal = _with_cause(what, source, error)
        if refusal is None:
            raise
        raise refusal from error


def _with_cause(what: str, source: str | Path, error: BaseException) -> ValueError | None:
    """The error to raise, or None for one that is no failure of loading."""
    chain = list(_chain(error))
    for cause in chain:
        if _no_memory(cause):
            return _insufficient_memory(what, source, cause)
        if isinstance(cause, RuntimeError) and "CUDA error" in str(cause):
            return DeviceError(f"device: expected a GPU that works, got {_first_line(cause)}; try device cpu")
    # A folder on disk needs no Hub, whatever libraries tried on their way.
    refusals = (_hub_refusal(what, source, cause) for cause in (() if Path(source).exists() else chain))
    refusal = next((refusal for refusal in refusals if refusal), None)
    if refusal is None and isinstance(error, PermissionError):
        return LoadError(f"{what} {source}: expected files that this user may read, got {_first_line(error)}")
    if refusal is None and isinstance(error, _DAMAGED):
        reason = _first_line(error)
        return LoadError(f"{what} {source}: cannot be loaded, the file may be damaged or of another kind ({reason})")
    return refusal


def _hub_refusal(what: str, source: str | Path, cause: BaseException) -> LoadError | None:
    if isinstance(cause, GatedRepoError):
        return GatedModelError(
            f"{what} {source}: expected access to this gated model, got none; ask for it at https://huggingface.co/{source}"
            " and log in with `hf auth login`"
        )
    if isinstance(cause, RepositoryNotFoundError):
        return UnknownModelError(
            f"{what} {source}: expected a folder or a model of the Hugging Face Hub, got a name that neither has; check it,"
            " or log in with `hf auth login` if the model is private"
        )
    if isinstance(cause, _UNREACHABLE) and not isinstance(cause, RemoteEntryNotFoundError):
        got = "none" if isinstance(cause, LocalEntryNotFoundError | OfflineModeIsEnabled) else _first_line(cause)
        remedy = "unset HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else "connect to the network"
        return HubUnreachableError(
            f"{what} {source}: expected a folder, a downloaded model or an answer of the Hugging Face Hub, got {got};"
            f" {remedy} or give a folder"
        )
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and those that led to it, the outermost first."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


@contextmanager
def memory_explained(what: str, free: Callable[[], None]) -> Iterator[None]:
    """Turn a device that runs out of memory while it serves into one error, after what can be freed was freed.

    Args:
        what: what was being done.
        free: called before the error is raised.

    Raises:
        MemoryFullError: in place of what PyTorch raises.
    """
    try:
        yield
        return
    except Exception as error:
        if not _no_memory(error):
            raise
        reason = _first_line(error)
    # Out here nothing holds the frames of the failed call, and with them their tensors.
    free()
    raise MemoryFullError(f"{what}: expected enough free memory, got too little ({reason}); kept images are freed, try again")


def _no_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError | SafetensorError) and any(words in str(error) for words in _NO_MEMORY)


def _insufficient_memory(what: str, source: str | Path, error: BaseException) -> InsufficientMemoryError:
    on_gpu = isinstance(error, torch.OutOfMemoryError) or "CUDA" in str(error)
    place = "on the GPU" if on_gpu else "on this machine"
    others = ", a smaller number format (dtype) or device cpu" if on_gpu else " or a smaller number format (dtype)"
    return InsufficientMemoryError(
        f"{what} {source}: expected enough free memory {place}, got too little ({_first_line(error)});"
        f" end other programs, or take a smaller model{others}"
    )


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
