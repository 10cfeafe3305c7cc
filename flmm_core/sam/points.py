"""Points inside a coarse mask, as prompts for SAM beside its box."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor


def interior_points(masks: Tensor, count: int, *, frame: int) -> tuple[Tensor, Tensor]:
    """Points inside masks: the peak of the logits, then those that are far from the border and from each other.

    Each further point is the centre of the largest circle inside the mask that has no earlier point in it. The peak is where
    the coarse mask is surest; the circles reach the mask's other parts and keep away from its border, which is the least known
    part of a coarse mask. The frame's edge counts as border.

    Args:
        masks: ``[n, m, m]`` logits over SAM's square input; positive inside.
        count: ``p`` points for each mask.
        frame: side of SAM's input, pixels.

    Returns:
        Points ``[n, p, 2]`` and labels ``[n, p]`` of :class:`~flmm_core.sam.masks.SamPrompts`. A mask with fewer than ``p``
        positive cells has as many points.
    """
    points, labels = torch.zeros(len(masks), count, 2), torch.full((len(masks), count), -1.0)
    for i, logits in enumerate(masks.detach().float().cpu().numpy() if count else ()):
        found = _cells(logits, count)
        points[i, : len(found)] = torch.tensor(found, dtype=torch.float32).view(-1, 2)
        labels[i, : len(found)] = 1
    # The middle of a cell; SAM's prompt encoder adds half a pixel.
    points = torch.where(labels[..., None] > 0, (points + 0.5) * frame / masks.shape[-1] - 0.5, points)
    return points.to(masks.device), labels.to(masks.device)


def _cells(logits: np.ndarray, count: int) -> list[tuple[int, int]]:
    """Column and row of up to ``count`` cells of one mask ``[m, m]``."""
    free = np.pad(logits > 0, 1).astype(np.uint8)
    cells: list[tuple[int, int]] = []
    score = np.pad(logits, 1, constant_values=-np.inf)
    while len(cells) < count and free.any():
        y, x = np.unravel_index(score.argmax(), score.shape)
        cells.append((int(x) - 1, int(y) - 1))
        free[y, x] = 0  # a taken cell is border to the next circle
        score = cv2.distanceTransform(free, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    return cells
