"""A SAM with a small convolutional image encoder, for CPUs and small data.

Prompt encoder and mask decoder are those of ``segment_anything``; only the image encoder differs. The embedding has
stride 8 and includes the features of stride 4, folded into channels, which keeps fine contours: masks have half the
input's resolution.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from segment_anything.modeling import MaskDecoder, Sam, TwoWayTransformer
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn
from torch.nn import functional as F

from flmm_core.sam.checkpoints import register_sam_format, save_sam
from flmm_core.sam.vit import SamPromptEncoder

FORMAT = "flmm-tiny-sam"
"""Format in the ``config.json`` of folders that :func:`save_tiny_sam` writes."""

STRIDE = 8
"""Input pixels for each cell of the embedding."""

EMBEDDING = 256
"""Channels of the embedding and of every prompt token."""


@dataclass(frozen=True)
class TinySamConfig:
    """Size of the tiny SAM; about 1.8 M parameters in the image encoder with the defaults."""

    img_size: int = 256
    """Side of the square input, pixels; a multiple of 16."""
    stem_width: int = 32
    """Channels at stride 2."""
    fine_width: int = 64
    """Channels at stride 4."""
    middle_width: int = 96
    """Channels at stride 8."""
    coarse_width: int = 160
    """Channels at stride 16."""
    blocks: int = 2
    """Residual blocks at each of the strides 4, 8 and 16."""
    mask_in_channels: int = 16
    decoder_depth: int = 2
    decoder_mlp: int = 1024

    def __post_init__(self) -> None:
        if self.img_size < 32 or self.img_size % 16:
            raise ValueError(f"img_size: expected a multiple of 16 from 32 on, got {self.img_size}")


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(max(1, width // 16), width)


class _Down(nn.Sequential):
    """Halves the resolution."""

    def __init__(self, width_in: int, width_out: int) -> None:
        super().__init__(
            nn.Conv2d(width_in, width_out, 3, stride=2, padding=1, bias=False), _norm(width_out), nn.ReLU(inplace=True)
        )


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = _norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = _norm(width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(x + self.norm2(self.conv2(y)))


def _stage(width_in: int, width_out: int, blocks: int) -> nn.Sequential:
    return nn.Sequential(_Down(width_in, width_out), *(_Residual(width_out) for _ in range(blocks)))


class TinyImageEncoder(nn.Module):
    """Normalised images ``[b, 3, s, s]`` to embeddings ``[b, 256, s/8, s/8]``."""

    def __init__(self, config: TinySamConfig) -> None:
        super().__init__()
        self.img_size = config.img_size
        self.stem = _Down(3, config.stem_width)
        self.fine = _stage(config.stem_width, config.fine_width, config.blocks)
        self.middle = _stage(config.fine_width, config.middle_width, config.blocks)
        self.coarse = _stage(config.middle_width, config.coarse_width, config.blocks)
        self.from_fine = nn.Conv2d(4 * config.fine_width, EMBEDDING, 1, bias=False)
        self.from_middle = nn.Conv2d(config.middle_width, EMBEDDING, 1, bias=False)
        self.from_coarse = nn.Conv2d(config.coarse_width, EMBEDDING, 1, bias=False)
        self.neck = nn.Sequential(
            LayerNorm2d(EMBEDDING),
            nn.Conv2d(EMBEDDING, EMBEDDING, 3, padding=1, groups=16, bias=False),
            LayerNorm2d(EMBEDDING),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings ``[b, 256, s/8, s/8]`` of normalised, padded images ``[b, 3, s, s]``."""
        fine = self.fine(self.stem(x))
        middle = self.middle(fine)
        coarse = F.interpolate(self.coarse(middle), scale_factor=2, mode="bilinear")
        # The four cells of stride 4 in a cell of stride 8 become groups of its channels, without averaging.
        folded = F.pixel_unshuffle(fine, 2)
        return self.neck(self.from_fine(folded) + self.from_middle(middle) + self.from_coarse(coarse))


def build_tiny_sam(config: TinySamConfig | None = None) -> Sam:
    """A tiny SAM with random weights, in evaluation mode."""
    config = config or TinySamConfig()
    cells = config.img_size // STRIDE
    sam = Sam(
        image_encoder=TinyImageEncoder(config),
        prompt_encoder=SamPromptEncoder(
            embed_dim=EMBEDDING,
            image_embedding_size=(cells, cells),
            input_image_size=(config.img_size, config.img_size),
            mask_in_chans=config.mask_in_channels,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(
                depth=config.decoder_depth, embedding_dim=EMBEDDING, mlp_dim=config.decoder_mlp, num_heads=8
            ),
            transformer_dim=EMBEDDING,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
        ),
    )
    return sam.eval()


def save_tiny_sam(sam: Sam, config: TinySamConfig, folder: str | Path, *, dtype: torch.dtype = torch.float16) -> None:
    """Write a SAM of :func:`build_tiny_sam` as a folder that :func:`flmm_core.sam.checkpoints.load_sam` reads."""
    save_sam(sam, folder, kind=FORMAT, fields=asdict(config), dtype=dtype)


def _from_fields(**fields: int) -> Sam:
    return build_tiny_sam(TinySamConfig(**fields))


register_sam_format(FORMAT, _from_fields)
