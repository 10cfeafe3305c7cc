"""JSON files that commands write, and the record of how a figure was measured."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flmm_bench.machine import machine
from flmm_cli.shared.outputs import write_output
from flmm_core.config import GroundingConfig

PACKAGES = ("flmm_ros", "torch", "transformers", "numpy")
"""Packages whose versions a record holds."""


def write_json(path: Path, record: Mapping[str, Any], command: str) -> None:
    """Write a record as indented JSON; see :func:`~flmm_cli.shared.outputs.write_output`.

    Args:
        path: the file; folders above it are made.
        record: what to write.
        command: of `flmm` that writes it, for the file's mark.
    """
    text = json.dumps({"written_by": f"flmm {command}", **record}, indent=1, ensure_ascii=False) + "\n"
    write_output(path, text)


def provenance(
    args: argparse.Namespace, config: GroundingConfig, parts: Sequence[str] = ("lmm", "heads", "sam")
) -> dict[str, Any]:
    """How a figure was measured: command line, fingerprints of the model, versions, machine.

    Args:
        args: of the command.
        config: names the model's parts.
        parts: those that were used.

    Raises:
        LoadError: a part of the model cannot be found.
    """
    from flmm_core.loading.defaults import model_record

    versions = {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}
    return {
        "command": shlex.join(["flmm", *args.arguments]),
        "model": model_record(config, parts),
        "versions": versions,
        "machine": machine(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None  # flmm_ros in a folder on the path, not installed
