"""Reference data of the published method, and the comparison with them; see ``flmm_core/verification/verify.py``.

This file defines names, shapes and tolerances; it runs no model.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from flmm_core.images.masks import Overlap

TOLERANCES = {
    "pixel values": 1e-5,
    "SAM input size": 0.0,
    "image features": 1e-4,
    "token ids": 0.0,
    "token positions": 0.0,
    "image positions": 0.0,
    "hidden states": 1e-4,
    "word logits": 1e-4,
    "attention rows": 1e-5,
    "merged maps": 1e-5,
    "text tokens": 1e-4,
    "U-Net output": 1e-4,
    "un-padded logits": 1e-4,
    "boxes": 0.0,
    "SAM embedding": 1e-4,
    "SAM mask prompts": 1e-4,
    "SAM low-res logits": 2e-3,
    "SAM predicted IoU": 1e-3,
    "SAM logits": 2e-3,
    "mask IoU": 0.0,
}
"""Largest absolute difference allowed; for ids and positions the number that differ, for the mask IoU the distance to 1."""

EXPECTED = (
    "pixel values", "image features", "token positions", "hidden states", "merged maps", "text tokens", "U-Net output",
    "un-padded logits", "boxes", "SAM logits",
)  # fmt: skip
"""Stages for which each sample of an LMM should have reference tensors."""

_EVERY = re.compile(r"_every(\d+)\w\w_(pixel|channel)$")
_LAST = re.compile(r"_last\d+")


@dataclass(frozen=True)
class Check:
    """Result of comparing one stage of one sample with the reference."""

    sample: str
    stage: str
    difference: float
    note: str = ""

    @property
    def tolerance(self) -> float:
        """Largest difference allowed."""
        return TOLERANCES[self.stage]

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; NaN is not."""
        return self.difference <= self.tolerance


class Wanted:
    """Reference tensors of one sample, and the comparison with them."""

    def __init__(self, arrays: Mapping[str, np.ndarray], sample: str) -> None:
        start = f"{sample}_"
        self.arrays = {key.removeprefix(start): value for key, value in arrays.items() if key.startswith(start)}
        self.sample = sample
        self.prefix = ""
        self._used: set[str] = set()

    def part(self, prefix: str) -> Wanted:
        """The tensors whose names begin with ``prefix``, by the rest of their names."""
        part = Wanted({}, self.sample)
        part.arrays = {key.removeprefix(prefix): value for key, value in self.arrays.items() if key.startswith(prefix)}
        part.prefix, part._used = self.prefix + prefix, self._used
        return part

    @property
    def unread(self) -> list[str]:
        """Names of the tensors that have not been compared."""
        return sorted(set(self.arrays) - self._used)

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def __getitem__(self, key: str) -> np.ndarray:
        if key not in self.arrays:
            raise ValueError(f"outputs.npz: expected an entry {self.sample}_{self.prefix}{key}, got none")
        self._used.add(self.prefix + key)
        return self.arrays[key]

    def compare(self, stage: str, key: str, got: Any) -> Iterator[Check]:
        """Compare with an entry, complete or subsampled; yields nothing if there is no such entry.

        Args:
            stage: of :data:`TOLERANCES`.
            key: name of the entry without sample, prefix and the suffix that states the subsampling.
            got: tensor of its shape, but for axes of one.
        """
        for name in self.arrays:
            every = _EVERY.search(name)
            if _EVERY.sub("", name) != key:
                continue
            step, what = (int(every[1]), every[2]) if every else (1, "pixel")
            got = torch.as_tensor(got)
            thin = got if step == 1 else got[..., ::step, ::step] if what == "pixel" else got[..., ::step, :, :]
            yield self.check(stage, thin, self[name], name)

    def last(self, key: str) -> np.ndarray | None:
        """An entry, complete or reduced to its last rows; None if there is none."""
        return next((self[name] for name in self.arrays if _LAST.sub("", name) == key), None)

    def check(self, stage: str, got: Any, expected: Any, note: str) -> Check:
        """Compare with an array that was computed from entries."""
        return Check(self.sample, stage, difference(got, expected), self.prefix + note)


def difference(got: Any, expected: Any) -> float:
    """Largest absolute difference; infinite if the shapes differ by more than axes of length one."""
    got, expected = np.squeeze(np.asarray(got, np.float64)), np.squeeze(np.asarray(expected, np.float64))
    if got.shape != expected.shape:
        return float("inf")
    return float(np.abs(got - expected).max(initial=0.0))


def wrong(got: Iterable[int], expected: Iterable[int]) -> float:
    """Number of positions at which two sequences of integers differ; infinite if their lengths differ."""
    pairs = (list(got), list(expected))
    return float(sum(a != b for a, b in zip(*pairs, strict=True))) if len(pairs[0]) == len(pairs[1]) else float("inf")


def missed_iou(got: np.ndarray, logits: np.ndarray) -> float:
    """1 - IoU of a mask and the positive logits, without the pixels whose logits are so close to 0 that rounding decides."""
    clear = np.abs(logits) > TOLERANCES["SAM logits"]
    return 1 - Overlap.of(got[clear].astype(bool), logits[clear] > 0).agreement
