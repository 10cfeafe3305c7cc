"""Whether the thing that a phrase names is in the image at all.

A mask head marks the most likely place of everything, also of what is not there. Two traces tell: what the phrase's tokens
became in the LMM, and how much attention they pay to the image and how sharply.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flmm_core.heads.token_probe import WIDTH, TokenProbe

_LEAST = 1e-4
"""Attention below this is as good as none."""


class PresenceHead(TokenProbe):
    """Probability that what a phrase names is there.

    Args:
        layers: decoder layers of the LMM.
        hidden_size: of the LMM.
        channels: attention channels of the LMM.
    """

    def __init__(self, layers: int, hidden_size: int, channels: int) -> None:
        super().__init__(layers, hidden_size)
        self.look = nn.Linear(2 * channels, WIDTH)

    def forward(self, mixed: Sequence[Tensor], maps: Tensor) -> Tensor:
        """Logits ``[n]``, high where the thing is there.

        A phrase is as present as its least present token: "mug left of the lemon" fails with the mug, the lemon or the place.

        Args:
            mixed: ``n`` tensors ``[t, d]``, mixtures by ``layer_weights`` for each phrase's tokens.
            maps: ``[n, c, h, w]`` attention of the phrases, not normalised.
        """
        maps = maps.float()
        looks = torch.cat([maps.sum(dim=(-2, -1)), maps.amax(dim=(-2, -1))], dim=1).clamp_min(_LEAST).log10() + 2
        units = self.look(looks)
        phrases = [
            -torch.logsumexp(-self.logits(self.units(tokens) + unit), dim=0) for tokens, unit in zip(mixed, units, strict=True)
        ]
        return torch.stack(phrases) if phrases else looks.new_zeros(0)
