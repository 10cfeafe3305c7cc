"""Which tokens of an answer belong to something that can be pointed at."""

from __future__ import annotations

from torch import Tensor

from flmm_core.heads.token_probe import TokenProbe


class KeywordSelector(TokenProbe):
    """Probability that a token belongs to something that can be pointed at (F-LMM, keyword selector)."""

    def forward(self, mixed: Tensor) -> Tensor:
        """Logits ``[t]`` from the mixture ``[t, d]`` by ``layer_weights``."""
        return self.logits(self.units(mixed))
