"""Losses of mask training (F-LMM, training: cross-entropy and DICE, weight 1 each)."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def mask_losses(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Binary cross-entropy and DICE loss (smoothed with 1) of masks.

    Args:
        logits: ``[n, h, w]``.
        targets: ``[n, h, w]`` in [0, 1].

    Returns:
        Two scalars, means over the masks.
    """
    logits, targets = logits.float().flatten(1), targets.float().flatten(1)
    bce = F.binary_cross_entropy_with_logits(logits, targets)
    found = logits.sigmoid()
    dice = 1 - (2 * (found * targets).sum(1) + 1) / (found.sum(1) + targets.sum(1) + 1)
    return bce, dice.mean()
