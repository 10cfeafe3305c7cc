"""Everything that is trained on top of the frozen LMM, with the parameter names of the published heads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flmm_core.heads.attention_presence import AttentionPresence
from flmm_core.heads.interface import Heads
from flmm_core.heads.keyword_selector import KeywordSelector
from flmm_core.heads.presence import PresenceHead
from flmm_core.heads.unet import UNetConfig, UNetHead
from flmm_core.images.geometry import unpad
from flmm_core.sam.refiner import SamRefiner
from flmm_core.types import CoarseMasks, ImageGeometry

_TEXT, _SELECTOR, _PRESENCE = range(3)
"""Rows of :meth:`GroundingHeads.layer_weights`."""


@dataclass(frozen=True)
class HeadsConfig:
    """Which LMM the heads fit, and their size."""

    unet: UNetConfig
    layers: int
    """Decoder layers of the LMM."""
    hidden_size: int
    """Hidden size of the LMM."""
    keyword_selector: bool = True
    """Whether the heads have a trained keyword selector; the published ones have none."""
    presence: bool = True
    """Whether the heads have a presence score; the published ones have none."""


class GroundingHeads(Heads):
    """Trained heads: U-Net, text projection, SAM refiner, keyword selector and presence score."""

    networks = ("unet", "sam_encoder", "sam_decoder")

    def __init__(self, *, config: HeadsConfig, sam: SamRefiner) -> None:
        super().__init__()
        self.config = config
        self.mask_head = UNetHead(config.unet)
        self.text_layer_weights = nn.Parameter(torch.ones(config.layers))
        self.text_proj = nn.Linear(config.hidden_size, sam.text_size)
        self.sam = sam
        size = (config.layers, config.hidden_size)
        self.keyword_selector = KeywordSelector(*size) if config.keyword_selector else None
        self.presence = PresenceHead(*size, config.unet.in_channels) if config.presence else None
        self.attention_presence: AttentionPresence | None = None
        """Stands in for a presence score that these heads do not have; calibrated on their LMM."""

    @property
    def description(self) -> str:
        """Their kind, for people."""
        return "trained" + ("; presence calibrated" if self.attention_presence else "")

    @property
    def selects_keywords(self) -> bool:
        """Whether these heads have a keyword selector."""
        return self.keyword_selector is not None

    def coarse_masks(self, maps: Tensor, geometry: ImageGeometry) -> CoarseMasks:
        """The U-Net's masks of ``[n, c, h, w]`` attention, un-padded."""
        return CoarseMasks(logits=unpad(self.mask_head(maps), geometry), geometry=geometry)

    def layer_weights(self) -> Tensor:
        """Weights of the decoder layers in text prompt, keyword selector and presence score: ``[3, l]`` float32.

        Rows of parts that these heads do not have are zero.
        """
        text = self.text_layer_weights.softmax(dim=0)
        probes = (self.keyword_selector, self.presence)
        rows = (torch.zeros_like(text) if probe is None else probe.layer_weights.softmax(dim=0) for probe in probes)
        return torch.stack([text, *rows])

    def mix(self, states: Tensor) -> Tensor:
        """Mixed states ``[3, t, d]`` from those of all layers ``[l, t, d]``, any float dtype."""
        return torch.einsum("kl,ltd->ktd", self.layer_weights(), states.float())

    def text_tokens(self, states: Tensor) -> Tensor:
        """Text prompt tokens ``[t, 256]`` from a phrase's states ``[3, t, d]``, mixed by :meth:`layer_weights`."""
        return self.text_proj(states[_TEXT])

    def keyword_logits(self, states: Tensor) -> Tensor | None:
        """Logits ``[t]`` that each token is part of a phrase; None without a keyword selector.

        Args:
            states: ``[3, t, d]``, mixed by :meth:`layer_weights`.
        """
        return None if self.keyword_selector is None else self.keyword_selector(states[_SELECTOR])

    def presence_logits(self, states: Sequence[Tensor], maps: Tensor) -> Tensor | None:
        """Logits ``[n]`` that the object of each phrase is in the image; None without a presence score.

        Args:
            states: ``n`` tensors ``[3, t, d]``, mixed by :meth:`layer_weights`, of each phrase's tokens.
            maps: ``[n, c, h, w]`` attention merged over each phrase's tokens.
        """
        return None if self.presence is None else self.presence([phrase[_PRESENCE] for phrase in states], maps)

    def presence_probabilities(self, states: Sequence[Tensor], maps: Tensor, coarse: CoarseMasks) -> list[float]:
        """Of the trained score, or else of the calibrated one; 1 without either."""
        logits = self.presence_logits(states, maps)
        if logits is not None:
            return logits.sigmoid().tolist()
        calibrated = self.attention_presence
        return [1.0] * len(states) if calibrated is None else calibrated.probabilities(maps, coarse)

    def trained_state(self) -> dict[str, Tensor]:
        """State dict without the frozen image encoder, as heads are saved."""
        return {key: value for key, value in self.state_dict().items() if ".image_encoder." not in key}


def trained(heads: Heads, what: str) -> GroundingHeads:
    """Heads for an operation that needs the U-Net.

    Args:
        heads: of a pipeline.
        what: the operation, for the message.

    Raises:
        ValueError: they are not trained ones.
    """
    if not isinstance(heads, GroundingHeads):
        raise ValueError(f"{what}: expected trained heads, got heads that are {heads.description}")
    return heads
