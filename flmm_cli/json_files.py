"""JSON that commands write: what was measured, by which command, with which model and which versions."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flmm_core.config import GroundingConfig

PACKAGES = ("flmm_ros", "torch", "transformers", "numpy")
"""Whose versions a record names."""


def write_json(path: Path, record: Any) -> None:
    """Write a record, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def provenance(
    args: argparse.Namespace, config: GroundingConfig, parts: Sequence[str] = ("lmm", "heads", "sam")
) -> dict[str, Any]:
    """Command, model and versions behind a measurement.

    Args:
        args: of the command.
        config: names the model's parts.
        parts: those that were used.

    Raises:
        LoadError: a part of the model is not there.
    """
    from flmm_core.loading.checkpoints import fingerprints

    sources = {part: getattr(config, part) for part in parts}
    versions = {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}
    return {
        "command": shlex.join(["flmm", *args.arguments]),
        "model": {part: {"source": sources[part], "fingerprint": value} for part, value in fingerprints(**sources).items()},
        "versions": versions,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None  # flmm_ros in a folder on the path, not installed
