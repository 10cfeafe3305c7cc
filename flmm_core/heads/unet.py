"""U-Net from stacked attention maps to coarse mask logits.

Module names are those of the published heads, so that their weights load without renaming. This file knows maps and
grids; it knows nothing of images or padding frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STAGES = 4
"""Resolutions of the U-Net."""

MULTIPLE = 2 ** (STAGES - 1)
"""Of which height and width of the network's input are."""

INPUT_SIZE = 64
"""Smaller maps are enlarged until their long side has this many cells."""


@dataclass(frozen=True)
class UNetConfig:
    """Size of the mask head."""

    in_channels: int
    """Attention channels of the LMM: layers * query heads."""
    base_channels: int = 64
    """Channels of the first stage; each further stage doubles them."""
    kept: tuple[int, ...] = ()
    """Attention channels that it sees, in this order; none for all, as the published heads do."""
    sink_quantile: float = 1.0
    """Cells above this quantile of their map are cut down to it: attention sinks take much and mean nothing; 1: none."""

    @property
    def channels(self) -> int:
        """Of the network's input."""
        return len(self.kept) or self.in_channels

    def __post_init__(self) -> None:
        object.__setattr__(self, "kept", tuple(self.kept))  # a list where it comes from JSON
        if not all(0 <= channel < self.in_channels for channel in self.kept) or len(set(self.kept)) < len(self.kept):
            raise ValueError(f"U-Net: expected different channels of 0 to {self.in_channels - 1}, got {list(self.kept)}")
        if not 0 < self.sink_quantile <= 1:
            raise ValueError(f"U-Net: expected a quantile above 0 and up to 1 for attention sinks, got {self.sink_quantile}")
        if self.in_channels < 1 or self.base_channels < 1:
            raise ValueError(f"U-Net: expected at least one channel, got {self.in_channels} in, {self.base_channels} base")


class _ConvNormRelu(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, kernel: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
        self.gn = nn.GroupNorm(1, channels_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.gn(self.conv(x)))


class _Block(nn.Module):
    """Two 3x3 convolutions."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.convs = nn.Sequential(_ConvNormRelu(channels_in, channels_out, 3), _ConvNormRelu(channels_out, channels_out, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.convs(x)


class _Upsample(nn.Module):
    """Twice the resolution, and the width of the skip connection."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.interp_upsample = nn.Sequential(
            nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
            _ConvNormRelu(channels_in, channels_out, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.interp_upsample(x)


class _DecoderStage(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_block = _Block(2 * channels, channels)
        self.upsample = _Upsample(2 * channels, channels)

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:
        return self.conv_block(torch.cat([skip, self.upsample(x)], dim=1))


class UNetHead(nn.Module):
    """The mask head; see :meth:`forward`."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        self.engine: Callable[[Tensor], Tensor] | None = None
        """Stands in for :meth:`network`."""
        widths = [config.base_channels * 2**i for i in range(STAGES)]
        stages = [nn.Sequential(_Block(config.channels, widths[0]))]
        for before, after in pairwise(widths):
            stages.append(nn.Sequential(nn.MaxPool2d(2), _Block(before, after)))
        self.encoder = nn.ModuleList(stages)
        self.decoder = nn.ModuleList(_DecoderStage(width) for width in widths[:-1])
        self.conv_seg = nn.Conv2d(widths[0], 1, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def network(self, maps: Tensor) -> Tensor:
        """The U-Net itself, which an engine may stand in for.

        Args:
            maps: ``[n, c, h, w]`` float32 from :func:`prepare_maps`, padded to multiples of :data:`MULTIPLE`.

        Returns:
            ``[n, h, w]`` logits.
        """
        x = maps
        skips = []
        for stage in self.encoder:
            x = stage(x)
            skips.append(x)
        for stage, skip in zip(reversed(self.decoder), reversed(skips[:-1]), strict=True):
            x = stage(skip, x)
        return self.conv_seg(x)[:, 0]

    def forward(self, maps: Tensor) -> Tensor:
        """Coarse mask logits.

        Args:
            maps: ``[n, c, h, w]`` word-to-image attention, non-negative, any float dtype.

        Returns:
            ``[n, h', w']`` float32 logits over the same frame; the long side has at least 64 cells.

        Raises:
            ValueError: if the number of channels is not the configured one.
        """
        if maps.ndim != 4 or maps.shape[1] != self.config.in_channels:
            raise ValueError(f"maps: expected [n, {self.config.in_channels}, h, w], got {list(maps.shape)}")
        x = prepare_maps(maps[:, list(self.config.kept)] if self.config.kept else maps, self.config.sink_quantile)
        height, width = x.shape[-2:]
        if x.shape[0] == 0:
            return x.new_zeros(0, height, width)
        # The padding stays in the statistics of the norms, as in training; only the output is cropped.
        x = F.pad(x, (0, -width % MULTIPLE, 0, -height % MULTIPLE))
        logits = self.network(x) if self.engine is None else self.engine(x)
        return logits[:, :height, :width]


def prepare_maps(maps: Tensor, sink_quantile: float = 1.0) -> Tensor:
    """Cut attention sinks, give each map the sum 1 and enlarge small ones, in this order.

    Args:
        maps: ``[n, c, h, w]``, non-negative.
        sink_quantile: cells above this quantile of their map are cut down to it.

    Returns:
        ``[n, c, h', w']`` float32; sizes are ``int(size * 64 / max(h, w))``, or the given ones if those are larger.
    """
    maps = maps.float()
    if sink_quantile < 1 and maps.numel():
        maps = maps.minimum(maps.flatten(-2).quantile(sink_quantile, dim=-1)[..., None, None])
    maps = maps / maps.sum(dim=(-2, -1), keepdim=True).clamp_min(1e-12)
    scale = max(1.0, INPUT_SIZE / max(maps.shape[-2:]))
    if maps.shape[0] == 0:
        return maps.new_zeros(0, maps.shape[1], *(int(size * scale) for size in maps.shape[-2:]))
    return F.interpolate(maps, scale_factor=scale, mode="bilinear", align_corners=False)
