"""The vision tower of flmm-tabletop: features of each image cell are its evidence for words, and its position.

It takes the place of CLIP in a large LLaVA and is registered with ``AutoModel``. A small residual convolutional network
encodes the cells, and a linear layer scores words. The tower outputs nothing else, so that the LMM can name an object only by
attending to its cells.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

ANY = "object"
"""The word that applies to every object."""


class TabletopTowerConfig(PreTrainedConfig):
    """Size and words. ``patch_size`` is the total stride in pixels; ``hidden_size`` is ``len(words) + position_channels``."""

    model_type = "flmm_tabletop_tower"

    image_size: int = 256
    patch_size: int = 16
    num_channels: int = 3
    stage_widths: tuple[int, ...] | list[int] = (48, 96, 192)
    stage_blocks: tuple[int, ...] | list[int] = (1, 2, 3)
    words: tuple[str, ...] | list[str] = (ANY,)
    position_channels: int = 32
    hidden_size: int = 33
    evidence_floor: float = -5.0
    """Votes up to this value give no evidence."""
    evidence_scale: float = 0.6
    """Factor of votes above the floor."""
    sure: float = 1.8
    """Evidence for ``ANY`` at which a cell outputs its full position code; an empty cell outputs none."""


class _ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(x + self.norm2(self.conv2(y)))


class TabletopTower(PreTrainedModel):
    """Images to one feature vector for each cell of a grid of ``image_size / patch_size`` rows and columns."""

    config_class = TabletopTowerConfig
    config: TabletopTowerConfig
    main_input_name = "pixel_values"
    base_model_prefix = "tower"

    def __init__(self, config: TabletopTowerConfig) -> None:
        super().__init__(config)
        if (
            2 ** (len(config.stage_widths) + 1) != config.patch_size
            or len(config.words) + config.position_channels != config.hidden_size
            or ANY not in config.words
        ):
            raise ValueError(
                f"expected patch_size 2 ** (len(stage_widths) + 1), {ANY!r} among the words, and hidden_size words and"
                f" position_channels, got patch_size {config.patch_size}, hidden_size {config.hidden_size},"
                f" stage_widths {list(config.stage_widths)}, {len(config.words)} words, {config.position_channels} positions"
            )
        layers: list[nn.Module] = []
        width_in = config.num_channels
        for width, blocks in zip(config.stage_widths, config.stage_blocks, strict=True):
            # Even kernels keep the receptive field centred on the cell.
            kernel, stride = (4, 2) if layers else (8, 4)
            layers += [nn.Conv2d(width_in, width, kernel, stride, stride // 2, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [_ResidualBlock(width) for _ in range(blocks)]
            width_in = width
        self.stages = nn.Sequential(*layers)
        cells = (config.image_size // config.patch_size) ** 2
        self.position_embedding = nn.Parameter(torch.zeros(1, cells, config.position_channels))
        self.norm = nn.LayerNorm(config.stage_widths[-1])
        self.votes = nn.Linear(config.stage_widths[-1], len(config.words))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, TabletopTower):
            grid = module.config.image_size // module.config.patch_size
            with torch.no_grad():
                module.position_embedding.copy_(position_code(grid, module.config.position_channels)[None])
        else:
            super()._init_weights(module)

    def content(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Appearance of the cells: pixel values ``[b, 3, image_size, image_size]`` to ``[b, cells, last width]``."""
        return self.norm(self.stages(pixel_values.to(self.dtype)).flatten(2).transpose(1, 2))

    def features(self, votes: torch.Tensor) -> torch.Tensor:
        """Output of the tower ``[b, cells, hidden_size]``: evidence for words, and the position of cells with an object.

        Args:
            votes: ``[b, cells, words]``, logarithms of what a cell adds to the count of a word's objects.
        """
        evidence = torch.relu(votes - self.config.evidence_floor) * self.config.evidence_scale
        occupied = (evidence[..., list(self.config.words).index(ANY), None] / self.config.sure).clamp(max=1)
        return torch.cat([evidence, self.position_embedding.to(votes.dtype) * occupied], -1)

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """Encode normalised images ``[b, 3, image_size, image_size]`` to ``[b, cells, hidden_size]``, row by row."""
        x = self.features(self.votes(self.content(pixel_values)))
        return BaseModelOutputWithPooling(last_hidden_state=x, hidden_states=(x,))


def position_code(grid: int, channels: int) -> torch.Tensor:
    """Cosines of each axis (DCT-II) as ``[grid * grid, channels]``: first all of x, then all of y, low frequencies first.

    The k-th frequency is divided by sqrt(k). The lowest one is monotonic, so that one channel orders cells from left to
    right; together they distinguish any two cells.

    Raises:
        ValueError: an odd number of channels.
    """
    if channels % 2:
        raise ValueError(f"expected an even number of channels, got {channels}")
    centre = (torch.arange(grid) + 0.5) / grid
    frequency = torch.arange(1, channels // 2 + 1)
    axis = -torch.cos(torch.pi * centre[:, None] * frequency) / frequency.sqrt()
    x, y = axis.expand(grid, -1, -1), axis[:, None].expand(-1, grid, -1)
    return torch.cat([x, y], -1).reshape(grid * grid, channels)


AutoConfig.register(TabletopTowerConfig.model_type, TabletopTowerConfig, exist_ok=True)
AutoModel.register(TabletopTowerConfig, TabletopTower, exist_ok=True)
