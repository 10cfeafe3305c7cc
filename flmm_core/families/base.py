"""What the project needs to know of a family of LMMs: prompt, preprocessing, where the image tokens are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from flmm_core.types import ImageGeometry


@dataclass(frozen=True)
class PreparedImage:
    """An image as the vision tower takes it."""

    pixel_values: Tensor
    """``[1, 3, padded_height, padded_width]`` float32, normalised."""
    geometry: ImageGeometry


@dataclass(frozen=True)
class LoadedLmm:
    """A model with its tokenizer and family; nothing is frozen or tapped yet."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    family: LmmFamily


class LmmFamily(ABC):
    """One kind of LMM. An instance belongs to one loaded model and reads all its numbers from that model's configs."""

    model_type: ClassVar[str]
    """``model_type`` of the Hugging Face config."""
    answer_separator: ClassVar[str] = " "
    """What stands between the prompt and an answer that is read rather than generated."""
    image_token_id: int
    image_token: str

    @classmethod
    @abstractmethod
    def load(cls, source: str, *, dtype: torch.dtype) -> LoadedLmm:
        """Load model and tokenizer from a folder or a Hugging Face name."""

    @abstractmethod
    def prompt(self, text: str) -> str:
        """The user's text in the family's chat format, with one image token."""

    @abstractmethod
    def prepare(self, image: Image.Image) -> PreparedImage:
        """Preprocess an RGB image as the published heads were trained."""

    @abstractmethod
    def encode(self, model: PreTrainedModel, prepared: PreparedImage) -> Any:
        """Run the vision tower; returns what the model takes as ``mm_encoder_outputs["image"]``."""

    @abstractmethod
    def image_tokens(self, features: Any) -> int:
        """How many image tokens the encoded image takes in the sequence."""

    @abstractmethod
    def arrange_maps(self, rows: Tensor, geometry: ImageGeometry) -> Tensor:
        """Attention rows ``[l, q, n, image tokens]`` as maps ``[n, c, h, w]``, channels as the heads expect them."""


def check_complete(report: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that lacks weights; transformers would fill them with random numbers and warn.

    Args:
        report: the loading info of ``from_pretrained``.
    """
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(f"expected every weight of the model, but {len(missing)} are missing ({', '.join(missing[:2])} ...)")
