"""Errors that callers tell apart, and the translation of what libraries raise into them.

Every message is one line that names the file, states what was expected and what was found and, where the file is not the
cause, suggests a remedy.
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
    """The text of a command cannot be used; model and image are in order."""


class CommandCancelledError(Exception):
    """The client cancelled the command."""


class MemoryFullError(RuntimeError):
    """A command needs more memory than the device has left; the caches of images are freed, so the next command may fit."""


class LoadError(ValueError):
    """A model or file cannot be loaded: it is damaged, of another kind, not accessible, or larger than the free memory."""


class DeviceError(ValueError):
    """The requested device does not exist or does not respond."""


class EngineError(LoadError):
    """A network cannot be exported, built or run outside PyTorch, or the exported files do not belong to these heads."""


_DAMAGED = (
    OSError, ValueError, TypeError, RuntimeError, EOFError, KeyError, AttributeError,
    SafetensorError, pickle.UnpicklingError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""Exceptions that reading a damaged file, or a file of another kind, raises."""

_UNREACHABLE = (
    HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, TimeoutError, socket.gaierror, ssl.SSLError,
)  # fmt: skip

_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "Cannot allocate memory")
"""Parts of the messages of CUDA, of PyTorch's CPU allocator and of mmap when memory is exhausted."""

_EXHAUSTED = (errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE)
"""Error numbers of a full disk, and of more open files than allowed."""


@contextmanager
def explained(what: str, source: str | Path) -> Iterator[None]:
    """Translate the exceptions that loading raises into one with a message of one line.

    Args:
        what: LMM, heads or SAM.
        source: its file, its folder, or its name on the Hub.

    Raises:
        LoadError: in place of the exceptions of libraries; a LoadError passes unchanged.
        DeviceError: the GPU failed for another reason than lack of memory.
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
    """The error to raise; None if ``error`` does not come from loading."""
    chain = list(_chain(error))
    for cause in chain:
        if _no_memory(cause):
            return _insufficient_memory(what, source, cause)
        if _gpu_failed(cause):
            return DeviceError(f"device: expected a GPU that works, got {_first_line(cause)}; try device cpu")
    # A folder on disk does not need the Hub, even if a library tried to reach it.
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
        return LoadError(
            f"{what} {source}: expected access to this gated model, got none; ask for it at https://huggingface.co/{source}"
            " and log in with `hf auth login`"
        )
    if isinstance(cause, RepositoryNotFoundError):
        return LoadError(
            f"{what} {source}: expected a folder or a model of the Hugging Face Hub, got a name that neither has; check it,"
            " or log in with `hf auth login` if the model is private"
        )
    if isinstance(cause, _UNREACHABLE) and not isinstance(cause, RemoteEntryNotFoundError):
        got = "none" if isinstance(cause, LocalEntryNotFoundError | OfflineModeIsEnabled) else _first_line(cause)
        remedy = "unset HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else "connect to the network"
        return LoadError(
            f"{what} {source}: expected a folder, a downloaded model or an answer of the Hugging Face Hub, got {got};"
            f" {remedy}, or {_by_hand(what, source)}"
        )
    return None


def _by_hand(what: str, source: str | Path) -> str:
    """Which files of the Hub to save, and where, for a machine without a network."""
    *repository, file = str(source).split("/", 2) if str(source).count("/") > 1 else (source, "")
    page = f"https://huggingface.co/{'/'.join(map(str, repository))}"
    if file:
        return f"save {page}/resolve/main/{file} and give its path"
    files = "the files" if what == "LMM" else "config.json and model.safetensors"
    return f"save {files} of {page} in a folder and give its path"


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and its causes, outermost first."""
    current: BaseException | None = error
    while current is not None:
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


@contextmanager
def memory_explained(what: str, free: Callable[[], None]) -> Iterator[None]:
    """Translate running out of memory during a command, after freeing what can be freed.

    Args:
        what: the operation, for the message.
        free: frees caches; called before the error is raised.

    Raises:
        MemoryFullError: in place of PyTorch's exception.
    """
    try:
        yield
        return
    except Exception as error:
        if not _no_memory(error):
            raise
        reason = _first_line(error)
    # Outside the except block nothing references the frames of the failed call, so their tensors can be freed.
    free()
    raise MemoryFullError(f"{what}: expected enough free memory, got too little ({reason}); kept images are freed, try again")


def of_machine(error: BaseException) -> bool:
    """Whether an exception or one of its causes is a failure of the machine: too little memory or disk, open files, the GPU."""
    return any(
        isinstance(cause, DeviceError | MemoryFullError)
        or _no_memory(cause)
        or _gpu_failed(cause)
        or (isinstance(cause, OSError) and cause.errno in _EXHAUSTED)
        for cause in _chain(error)
    )


def _gpu_failed(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and "CUDA error" in str(error)


def _no_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError | SafetensorError) and any(words in str(error) for words in _NO_MEMORY)


def _insufficient_memory(what: str, source: str | Path, error: BaseException) -> LoadError:
    on_gpu = isinstance(error, torch.OutOfMemoryError) or "CUDA" in str(error)
    place = "on the GPU" if on_gpu else "on this machine"
    others = ", a smaller number format (dtype) or device cpu" if on_gpu else " or a smaller number format (dtype)"
    return LoadError(
        f"{what} {source}: expected enough free memory {place}, got too little ({_first_line(error)});"
        f" end other programs, or take a smaller model{others}"
    )


def _first_line(error: BaseException) -> str:
    """The first line of a message, to be quoted inside another: PyTorch and the Hub append paragraphs of advice."""
    return str(error).strip().split("\n")[0] or type(error).__name__
