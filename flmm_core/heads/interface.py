"""The interface of heads: what turns the traces of a frozen LMM into masks of phrases, trained or not."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from flmm_core.sam.refiner import SamRefiner
from flmm_core.types import CoarseMasks, ImageGeometry


class Heads(nn.Module, ABC):
    """Coarse masks, presence and SAM's prompts of phrases. Always float32.

    Each kind states which mixtures ``k`` of the decoder's hidden states it reads; ``k`` may be 0.
    """

    sam: SamRefiner
    networks: ClassVar[tuple[str, ...]]
    """Networks that an engine may run, of :data:`~flmm_core.engines.names.NAMES`."""

    @property
    @abstractmethod
    def description(self) -> str:
        """Their kind, for people."""

    @property
    @abstractmethod
    def selects_keywords(self) -> bool:
        """Whether :meth:`keyword_logits` says which tokens belong to phrases; else noun chunks do."""

    @abstractmethod
    def layer_weights(self) -> Tensor:
        """Weights of the decoder layers in each mixture of hidden states, ``[k, l]`` float32."""

    @abstractmethod
    def keyword_logits(self, states: Tensor) -> Tensor | None:
        """Logits ``[t]`` that each token is part of a phrase; None without a keyword selector.

        Args:
            states: ``[k, t, d]``, mixed by :meth:`layer_weights`.
        """

    @abstractmethod
    def coarse_masks(self, maps: Tensor, geometry: ImageGeometry) -> CoarseMasks:
        """Coarse masks that cover exactly the image.

        Args:
            maps: ``[n, c, h, w]`` attention merged over each phrase's tokens, over the padded frame.
            geometry: of the image in that frame.
        """

    @abstractmethod
    def presence_probabilities(self, states: Sequence[Tensor], maps: Tensor, coarse: CoarseMasks) -> list[float]:
        """Probabilities that the object of each phrase is in the image; 1 without a presence score.

        Args:
            states: ``n`` tensors ``[k, t, d]``, mixed by :meth:`layer_weights`, of each phrase's tokens.
            maps: as for :meth:`coarse_masks`.
            coarse: what :meth:`coarse_masks` made of them.
        """

    @abstractmethod
    def text_tokens(self, states: Tensor) -> Tensor:
        """Text prompt tokens ``[t, 256]`` from a phrase's states ``[k, t, d]``; ``[0, 256]`` without a text prompt."""
