"""Presence score: whether the object that a phrase names is in the image at all.

A mask head marks the most likely place of any phrase, also of an object that is not there. The score reads two signals: the
hidden states of the phrase's tokens, and how much attention they pay to the image and how sharply.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flmm_core.heads.token_probe import WIDTH, TokenProbe

_LEAST = 1e-4
"""Attention below this counts as none."""


class PresenceHead(TokenProbe):
    """Probability that the object of a phrase is in the image.

    Args:
        layers: decoder layers of the LMM.
        hidden_size: of the LMM.
        channels: attention channels of the LMM.
    """

    def __init__(self, layers: int, hidden_size: int, channels: int) -> None:
        super().__init__(layers, hidden_size)
        self.look = nn.Linear(2 * channels, WIDTH)

    def forward(self, mixed: Sequence[Tensor], maps: Tensor) -> Tensor:
        """Logits ``[n]``, high where the object is in the image.

        Of each channel's map the sum (share of the attention that goes to the image) and the maximum (how sharp it is) enter as
        ``log10(max(x, 1e-4)) + 2``, so ``[n, 2 c]`` values between -2 and 2. They are added to the hidden units of every token
        of the phrase. The logits ``z`` of a phrase's tokens are combined by ``-logsumexp(-z)``, a soft minimum: "mug left of
        the lemon" fails with the mug, the lemon or the relation.

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
