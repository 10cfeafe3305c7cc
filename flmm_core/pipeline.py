"""The whole path on one screen: picture and words in, answer and masks out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from flmm_core.config import GroundingConfig
from flmm_core.types import GroundedAnswer


class GroundingPipeline:
    """Answers about a picture and points at what the answer names.

    ``set_image`` pays for the picture once; ``chat`` and ``refer`` are then cheap. Not thread-safe.
    """

    @classmethod
    def from_pretrained(
        cls, lmm: str | None = None, heads: str | None = None, sam: str | None = None, **options: object
    ) -> GroundingPipeline:
        """Load the three parts; none given loads the shipped model. ``options``: see :class:`GroundingConfig`."""
        return cls.from_config(GroundingConfig(lmm=lmm or "", heads=heads or "", sam=sam or "", **options))  # type: ignore[arg-type]

    @classmethod
    def from_config(cls, config: GroundingConfig) -> GroundingPipeline:
        """Load what ``config`` names."""
        raise NotImplementedError

    def set_image(self, picture: np.ndarray | Image.Image) -> float:
        """Encode a picture (``[H, W, 3]`` uint8 RGB, or PIL) for the commands that follow; returns seconds."""
        raise NotImplementedError

    def chat(
        self, text: str, *, max_new_tokens: int | None = None, on_text: Callable[[str], None] | None = None
    ) -> GroundedAnswer:
        """Generate an answer to ``text`` and ground the phrases that the keyword selector picks."""
        raise NotImplementedError

    def refer(self, phrases: Sequence[str]) -> GroundedAnswer:
        """Ground given phrases; nothing is generated."""
        raise NotImplementedError
