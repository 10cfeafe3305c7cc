"""Masks and maps over one image: overlap of masks, peaks of maps, share of a map on a mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

Mask = TypeVar("Mask", np.ndarray, torch.Tensor)
"""``[..., H, W]`` bool."""


@dataclass(frozen=True)
class Overlap:
    """Pixel counts of the intersection and the union of a predicted and a true mask, either of which may be missing."""

    shared: int
    union: int

    @property
    def iou(self) -> float:
        """Intersection over union; 0 for two empty masks."""
        return self.shared / self.union if self.union else 0.0

    @property
    def agreement(self) -> float:
        """Intersection over union; 1 for two empty masks, for two computations of one mask."""
        return self.iou if self.union else 1.0

    @classmethod
    def of(cls, found: Mask | None, true: Mask | None) -> Overlap:
        """Compare masks of one shape, ``[..., H, W]`` bool; None for a mask that is missing."""
        if found is None or true is None:
            only = true if found is None else found
            return cls(0, 0 if only is None else int(only.sum()))
        return cls(int((found & true).sum()), int((found | true).sum()))


def peaks(maps: np.ndarray, height: int, width: int) -> list[tuple[int, int]]:
    """Centres ``(x, y)`` of the largest cells of maps ``[k, h, w]``, in pixels of the image that they cover."""
    rows, columns = maps.shape[-2:]
    largest = maps.reshape(len(maps), -1).argmax(1)
    return [(int((at % columns + 0.5) * width / columns), int((at // columns + 0.5) * height / rows)) for at in largest]


def touched_cells(mask: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """``[rows, columns]`` bool: cells of a grid over a mask ``[H, W]`` that hold any of its pixels."""
    pixels = torch.from_numpy(mask)[None, None].float()
    return (torch.nn.functional.adaptive_max_pool2d(pixels, (rows, columns))[0, 0] > 0).numpy()


def share_on(maps: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Share ``[k]`` of each map ``[k, h, w]`` on the cells that a mask ``[H, W]`` of the same image touches."""
    cells = touched_cells(mask, *maps.shape[-2:])
    return maps[:, cells].sum(axis=1) / np.maximum(maps.sum(axis=(1, 2)), 1e-12)
