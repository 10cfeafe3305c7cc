"""Where the parts of a model are: in a folder or file, under a registered name, or on the Hugging Face Hub.

This file knows names and places. It knows nothing of what is in them.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from flmm_core.errors import LoadError, explained

_MODELS: dict[str, Path] = {}
"""Folders of models that have a name; see :func:`register_model`."""

_KINDS = {"lmm": "LMM", "heads": "heads", "sam": "SAM"}
"""What the parts are called in messages."""

_FOLDER_FILES = ["config.json", "*.safetensors"]
"""What heads and SAMs consist of, of all that a repository of the Hub may hold."""


def register_model(name: str, folder: Path) -> None:
    """Give a model a name by which its parts can be loaded.

    Args:
        name: stands for the parts wherever one is asked for; a folder of the same name is reached as ``./name``.
        folder: holds the folders ``lmm``, ``heads`` and ``sam``.
    """
    _MODELS[name] = folder


def registered_parts(source: str | Path) -> dict[str, str]:
    """Folders of the parts of a registered model; none if ``source`` is no such name."""
    folder = _MODELS.get(str(source))
    return {part: str(folder / part) for part in _KINDS} if folder else {}


def located(part: str, source: str | Path) -> str:
    """The folder, file or name of the Hub that ``source`` means; nothing is downloaded.

    Args:
        part: ``lmm``, ``heads`` or ``sam``.
        source: what the user gave: one of these, or the name of a registered model.

    Raises:
        LoadError: there is no such folder or file, and it is no name that the Hub might have.
    """
    name = str(source)
    if name in _MODELS:
        return str(_MODELS[name] / part)
    try:
        path = Path(name).expanduser()
    except RuntimeError as error:
        raise LoadError(f"{part} {name}: expected the home directory of a user, got none of that name") from error
    if path.exists() and name:
        return str(path)
    if not name or path.name == name:
        known = ", ".join(sorted(_MODELS)) or "none"
        other = "Hugging Face name (owner/name)" if part == "lmm" else "file, a Hugging Face name (owner/name)"
        raise LoadError(f"{part}: expected a folder, a {other} or a registered model (known: {known}), got {name!r}")
    if not may_be_on_hub(part, name):
        what = "folder or a Hugging Face name (owner/name)" if part == "lmm" else "file or folder"
        raise LoadError(f"{_KINDS[part]} {name}: expected an existing {what}, got nothing there")
    return name


def local(part: str, source: str | Path) -> Path:
    """The folder or file that ``source`` means, on this machine; what is on the Hub is downloaded, without progress bars.

    Args:
        part: ``heads`` or ``sam``.
        source: as for :func:`located`; on the Hub ``owner/name`` is a folder, ``owner/name/file.pth`` one file in it.

    Raises:
        LoadError: of the type that the cause has.
    """
    name = located(part, source)
    if (path := Path(name)).exists():
        return path
    owner, repository, *rest = name.split("/")
    bars = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with explained(_KINDS[part], name):
            if rest:
                return Path(hf_hub_download(f"{owner}/{repository}", "/".join(rest)))
            return Path(snapshot_download(f"{owner}/{repository}", allow_patterns=_FOLDER_FILES))
    finally:
        if bars:
            enable_progress_bars()


def may_be_on_hub(part: str, name: str) -> bool:
    """Whether a name has the form of a model, or of a file of heads or a SAM, on the Hub."""
    if name.startswith((".", "~", "/")) or "" in (parts := name.split("/")):
        return False
    return len(parts) == 2 or (part != "lmm" and len(parts) > 2 and name.endswith(".pth"))
