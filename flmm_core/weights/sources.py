"""Resolves the source of a model's part: a folder or file, a registered name, or a name on the Hugging Face Hub.

This file is independent of the contents.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from flmm_core.config import DEFAULT_MODEL
from flmm_core.errors import LoadError, explained

PACKAGES = {DEFAULT_MODEL: "flmm_tabletop"}
"""Python packages of the models that have a name: the one place where the core refers to packages above it.

Such a package has a folder ``MODEL``, which holds the folders ``lmm``, ``heads`` and ``sam``, and a function
``register_formats()``, which makes the model's own classes known. It is imported when a process first looks up a part of a
model. That works in a checkout, after pip and after colcon, whereas entry points would need the metadata of a pip install.
"""

_KINDS = {"lmm": "LMM", "heads": "heads", "sam": "SAM"}
"""Names of the parts in messages."""

_FOLDER_FILES = ["config.json", "*.safetensors"]
"""Files of heads and SAMs among all files of a repository on the Hub."""


def registered_models() -> dict[str, Path]:
    """Folders of the models that have a name; their formats are known from here on.

    A name stands for the model's parts wherever one is asked for; a folder of the same name is reached as ``./name``. A model
    whose package is not installed is not known.
    """
    packages = {name: import_module(package) for name, package in PACKAGES.items() if find_spec(package)}
    for package in packages.values():
        package.register_formats()
    return {name: package.MODEL for name, package in packages.items()}


def registered_parts(source: str | Path) -> dict[str, str]:
    """Folders of the parts of a registered model; none if ``source`` is no such name."""
    folder = registered_models().get(str(source))
    return {part: str(folder / part) for part in _KINDS} if folder else {}


def located(part: str, source: str | Path) -> str:
    """The folder, file or name on the Hub that ``source`` stands for; nothing is downloaded.

    Args:
        part: ``lmm``, ``heads`` or ``sam``.
        source: what the user gave: one of these, or the name of a registered model.

    Raises:
        LoadError: there is no such folder or file, and it cannot be a name on the Hub.
    """
    name = str(source)
    models = registered_models()
    if name in models:
        return str(models[name] / part)
    try:
        path = Path(name).expanduser()
    except RuntimeError as error:
        raise LoadError(f"{part} {name}: expected the home directory of a user, got none of that name") from error
    if path.exists() and name:
        return str(path)
    if not name or path.name == name:
        known = ", ".join(sorted(models)) or "none"
        other = "Hugging Face name (owner/name)" if part == "lmm" else "file, a Hugging Face name (owner/name)"
        raise LoadError(f"{part}: expected a folder, a {other} or a registered model (known: {known}), got {name!r}")
    if not may_be_on_hub(part, name):
        what = "folder or a Hugging Face name (owner/name)" if part == "lmm" else "file or folder"
        raise LoadError(f"{_KINDS[part]} {name}: expected an existing {what}, got nothing there")
    return name


def local(part: str, source: str | Path) -> Path:
    """The local folder or file that ``source`` stands for; files on the Hub are downloaded, without progress bars.

    Args:
        part: ``heads`` or ``sam``.
        source: as for :func:`located`; on the Hub ``owner/name`` is a folder, ``owner/name/file.pth`` one file in it.

    Raises:
        LoadError: it does not exist, is not accessible, or the Hub cannot be reached.
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
    return len(parts) == 2 or (part != "lmm" and len(parts) > 2 and name.endswith((".pth", ".json")))
