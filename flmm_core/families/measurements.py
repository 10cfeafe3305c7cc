"""What was measured of a checkpoint, and that it was proven: kept in the user's cache by the fingerprint of its weights."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers

from flmm_core.common.user_cache import user_cache
from flmm_core.families.checkpoint import Checkpoint
from flmm_core.families.view_grid import ViewGrid
from flmm_core.weights.cache_manifest import write_record
from flmm_core.weights.fingerprints import lmm_fingerprint, settings_fingerprint

_FORMAT = 1
_SMALL_FILES = ("config.json", "preprocessor_config.json", "processor_config.json", "tokenizer_config.json")


@dataclass
class Measurements:
    """Layouts by image size, and the proofs of the model.

    A file that cannot be read or written is no error: what it held is measured again.
    """

    path: Path | None
    """The file; None where the weights are not on this machine."""
    grids: dict[tuple[int, int], ViewGrid] = field(default_factory=dict)
    """By width and height of the image, pixels."""
    proofs: dict[str, Any] = field(default_factory=dict)
    """What :mod:`flmm_core.lmm.acceptance` found; empty if it has not run."""

    @classmethod
    def of(cls, checkpoint: Checkpoint, *, loaded: bool) -> Measurements:
        """Those of a checkpoint, of this version of transformers and these settings.

        Args:
            checkpoint: of a family that is measured.
            loaded: whether the weights were read, so that none is downloaded for its fingerprint.
        """
        if not (Path(checkpoint.source).is_dir() or loaded):
            return cls(None)
        made_from = {
            "weights": lmm_fingerprint(checkpoint.source),
            "settings": {name: checkpoint.json(name) for name in _SMALL_FILES},
            "template": checkpoint.chat_template,
            "transformers": transformers.__version__,
            "format": _FORMAT,
        }
        path = user_cache("measured") / f"{settings_fingerprint(made_from)[:24]}.json"
        found = cls(path)
        with suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            kept = json.loads(path.read_text(encoding="utf-8"))
            grids = {_size(name): ViewGrid.of_record(record) for name, record in kept["grids"].items()}
            found.grids, found.proofs = grids, dict(kept["proofs"])
        return found

    def keep_grid(self, size: tuple[int, int], grid: ViewGrid) -> None:
        """Keep the layout of images of a width and height."""
        self.grids[size] = grid
        self._write()

    def keep_proofs(self, proofs: dict[str, Any]) -> None:
        """Keep the proofs of the model."""
        self.proofs = proofs
        self._write()

    def _write(self) -> None:
        grids = {f"{width}x{height}": grid.record() for (width, height), grid in self.grids.items()}
        if self.path is None:
            return
        with suppress(OSError):
            write_record(self.path, {"proofs": self.proofs, "grids": grids})


def _size(name: str) -> tuple[int, int]:
    width, height = name.split("x")
    return int(width), int(height)
