"""SAM 2 and HQ-SAM as refiners: models of transformers behind the parts that :class:`~flmm_core.sam.refiner.SamRefiner` uses.

Their decoders take further feature maps beside the embedding ``[1, d, e, e]``. These are packed behind its channels, so that an
image is one tensor ``[1, C, e, e]`` as with SAM (``d`` = 256; ``e`` = 64 for an input of 1024 x 1024 pixels):

- SAM 2, C = 4 d: the embedding; a map ``[1, d/8, 4e, 4e]``, each block of 4 x 4 cells as 16 channels (``2 d`` in all); a map
  ``[1, d/4, 2e, 2e]``, each block of 2 x 2 cells as 4 channels (``d`` in all).
- HQ-SAM, C = d + v: the embedding; the output ``[1, e, e, v]`` of the encoder's first block with global attention; ``v`` is
  the width of the encoder.
"""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Sam2Model, SamHQModel

from flmm_core.errors import LoadError

_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
"""Mean and standard deviation of RGB 0..255, as for SAM."""
_FINER = (4, 2)
"""Resolution of SAM 2's further feature maps, in multiples of the embedding's."""


class TransformersSam(nn.Module):
    """Image encoder, prompt encoder and mask decoder with the interfaces of ``segment_anything``."""

    model_types: ClassVar[tuple[str, ...]]
    """Values of ``model_type`` in the ``config.json`` of a checkpoint."""
    model_class: ClassVar[Any]
    stretches: ClassVar[bool]
    """Whether an image is stretched to the square input; else it keeps its shape and is padded."""
    encoder_class: ClassVar[type[nn.Module]]
    decoder_class: ClassVar[type[nn.Module]]

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.image_encoder = self.encoder_class(model)
        self.prompt_encoder = _PromptEncoder(model)
        self.mask_decoder = self.decoder_class(model)
        self.register_buffer("pixel_mean", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(_STD).view(3, 1, 1), persistent=False)
        self.pixel_mean: Tensor
        self.pixel_std: Tensor

    @property
    def device(self) -> torch.device:
        """Device of the model."""
        return self.pixel_mean.device

    def preprocess(self, pixels: Tensor) -> Tensor:
        """Normalise ``[1, 3, h, w]`` of 0..255 and pad it to the square input."""
        normal = (pixels - self.pixel_mean) / self.pixel_std
        side = int(self.image_encoder.img_size)  # type: ignore[arg-type]
        return F.pad(normal, (0, side - normal.shape[-1], 0, side - normal.shape[-2]))

    def postprocess_masks(self, masks: Tensor, input_size: tuple[int, int], original_size: tuple[int, int]) -> Tensor:
        """Logits ``[n, 1, m, m]`` over the square input as ``[n, 1, H, W]`` over the image, as SAM does it."""
        side = int(self.image_encoder.img_size)  # type: ignore[arg-type]
        whole = F.interpolate(masks, (side, side), mode="bilinear", align_corners=False)
        inner = whole[..., : input_size[0], : input_size[1]]
        return F.interpolate(inner, original_size, mode="bilinear", align_corners=False)


class _PromptEncoder(nn.Module):
    """The prompt encoder of transformers with the interface of ``segment_anything``, for ``n`` phrases."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.encoder = model.prompt_encoder
        self.shared_image_embedding = model.shared_image_embedding
        self.embed_dim = int(self.encoder.hidden_size)
        height, width = self.encoder.image_embedding_size
        self.image_embedding_size = (height, width)
        self.mask_input_size = (4 * height, 4 * width)

    def forward(
        self, points: tuple[Tensor, Tensor] | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Sparse ``[n, t, d]`` and dense ``[n, d, eh, ew]`` embeddings; ``n`` is 1 without any prompt."""
        coordinates, labels = (None, None) if points is None else (points[0][:, None], points[1][:, None].long())
        given = None if boxes is None else boxes[:, None]
        sparse, dense = self.encoder(input_points=coordinates, input_labels=labels, input_boxes=given, input_masks=masks)
        return dense.new_zeros(len(dense), 0, self.embed_dim) if sparse is None else sparse[:, 0], dense

    def get_dense_pe(self) -> Tensor:
        """Positions of the image's cells, ``[1, d, eh, ew]``."""
        (height, width), weight = self.image_embedding_size, self.shared_image_embedding.positional_embedding
        y = (torch.arange(height, device=weight.device, dtype=weight.dtype) + 0.5) / height
        x = (torch.arange(width, device=weight.device, dtype=weight.dtype) + 0.5) / width
        grid = torch.stack([x[None].expand(height, -1), y[:, None].expand(-1, width)], dim=-1)
        positions: Tensor = self.shared_image_embedding(grid)
        return positions.permute(2, 0, 1)[None]


class _Sam2Encoder(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.img_size = int(model.prompt_encoder.input_image_size)
        self.vision_encoder = model.vision_encoder
        # These belong to the decoder's weights, but depend on the image alone: computed once for an image, and frozen.
        self.finer = nn.ModuleList([model.mask_decoder.conv_s0, model.mask_decoder.conv_s1])
        self.no_memory_embedding = model.no_memory_embedding

    def forward(self, pixels: Tensor) -> Tensor:
        *finer, embedding = self.vision_encoder(pixels, return_dict=True).fpn_hidden_states
        embedding = embedding + self.no_memory_embedding.reshape(1, -1, 1, 1)
        packed = [F.pixel_unshuffle(conv(maps), by) for conv, maps, by in zip(self.finer, finer, _FINER, strict=True)]
        return torch.cat([embedding, *packed], dim=1)


class _Decoder(nn.Module):
    """A mask decoder of transformers with the interface of ``segment_anything``; ``n`` phrases form its batch."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.decoder = model.mask_decoder
        # SAM 2 replaces the single mask by another one where it looks unstable, which is meant for clicks, not for training.
        self.decoder.dynamic_multimask_via_stability = False

    @abstractmethod
    def unpacked(self, rest: Tensor) -> dict[str, Any]:
        """Further inputs of the decoder, from the channels ``[n, C - d, e, e]`` behind the embedding."""

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        multimask_output: bool,
    ) -> tuple[Tensor, Tensor]:
        size, count = int(self.decoder.hidden_size), len(sparse_prompt_embeddings)
        embedding, rest = image_embeddings[:, :size], image_embeddings[:, size:]
        masks, iou = self.decoder(
            image_embeddings=embedding.expand(count, -1, -1, -1),
            image_positional_embeddings=image_pe.expand(count, -1, -1, -1),
            sparse_prompt_embeddings=sparse_prompt_embeddings[:, None],
            dense_prompt_embeddings=dense_prompt_embeddings,
            multimask_output=multimask_output,
            **self.unpacked(rest.expand(count, -1, -1, -1)),
        )[:2]
        return masks[:, 0], iou[:, 0]


class _Sam2Decoder(_Decoder):
    def unpacked(self, rest: Tensor) -> dict[str, Any]:
        size = int(self.decoder.hidden_size)
        parts = rest.split([size // less * by**2 for less, by in zip((8, 4), _FINER, strict=True)], dim=1)
        finer = [F.pixel_shuffle(maps, by) for maps, by in zip(parts, _FINER, strict=True)]
        return {"high_resolution_features": finer}


class Sam2(TransformersSam):
    """SAM 2 and 2.1, on single images."""

    model_types = ("sam2", "sam2_video")
    model_class = Sam2Model
    stretches = True
    encoder_class = _Sam2Encoder
    decoder_class = _Sam2Decoder


class _SamHqEncoder(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.img_size = int(model.prompt_encoder.input_image_size)
        self.vision_encoder = model.vision_encoder

    def forward(self, pixels: Tensor) -> Tensor:
        output = self.vision_encoder(pixels, return_dict=True)
        return torch.cat([output.last_hidden_state, output.intermediate_embeddings[0].permute(0, 3, 1, 2)], dim=1)


class _SamHqDecoder(_Decoder):
    def unpacked(self, rest: Tensor) -> dict[str, Any]:
        return {"hq_token_only": False, "intermediate_embeddings": [rest.permute(0, 2, 3, 1)]}


class SamHq(TransformersSam):
    """HQ-SAM: SAM with an additional output token and features for fine masks."""

    model_types = ("sam_hq",)
    model_class = SamHQModel
    stretches = False
    encoder_class = _SamHqEncoder
    decoder_class = _SamHqDecoder


_KINDS = {kind: adapter for adapter in (Sam2, SamHq) for kind in adapter.model_types}


def is_transformers_sam(config: dict[str, Any]) -> bool:
    """Whether a ``config.json`` belongs to a SAM that runs in transformers."""
    return config.get("model_type") in _KINDS


def load_transformers_sam(folder: Path, kind: str) -> TransformersSam:
    """Load SAM 2 or HQ-SAM.

    Args:
        folder: of the checkpoint.
        kind: ``model_type`` of its config.

    Raises:
        LoadError: weights are missing.
    """
    adapter = _KINDS[kind]
    loaded: Any = adapter.model_class.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise LoadError(f"SAM {folder}: expected every weight of {kind}, but {len(missing)} are missing ({missing[0]} ...)")
    return adapter(model)
