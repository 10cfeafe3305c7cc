"""Keyword selector: which tokens of an answer belong to phrases that get a mask."""

from __future__ import annotations

from torch import Tensor

from flmm_core.heads.token_probe import TokenProbe


class KeywordSelector(TokenProbe):
    """Logit of each token that it belongs to a phrase that gets a mask (F-LMM, keyword selector)."""

    def forward(self, mixed: Tensor) -> Tensor:
        """Logits ``[t]`` from the mixture ``[t, d]`` by ``layer_weights``."""
        return self.logits(self.units(mixed))
