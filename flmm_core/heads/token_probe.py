"""A small network on the frozen LMM's hidden states, token by token: the base of keyword selector and presence score.

It reads a learnt mixture of the decoder layers: the last layer alone represents the next token better than the current one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH = 64
"""Units of the hidden layer."""


class TokenProbe(nn.Module):
    """LayerNorm, one hidden layer and one logit for each token, on a learnt mixture of the decoder layers.

    Args:
        layers: decoder layers of the LMM.
        hidden_size: of the LMM.
    """

    def __init__(self, layers: int, hidden_size: int) -> None:
        super().__init__()
        self.layer_weights = nn.Parameter(torch.zeros(layers))
        self.norm = nn.LayerNorm(hidden_size)
        self.hidden = nn.Linear(hidden_size, WIDTH)
        self.out = nn.Linear(WIDTH, 1)

    def units(self, mixed: Tensor) -> Tensor:
        """Hidden units before their ReLU, ``[t, WIDTH]``, from the mixture ``[t, d]`` by ``layer_weights``."""
        return self.hidden(self.norm(mixed))

    def logits(self, units: Tensor) -> Tensor:
        """One logit for each token, ``[t]``, from hidden units ``[t, WIDTH]``."""
        return self.out(units.relu())[..., 0]
