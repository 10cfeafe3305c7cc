"""Layout of an image that is read as tiles and as a whole: InternVL, SmolVLM."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flmm_core.families.layouts import ImageLayout
from flmm_core.types import ImageGeometry


@dataclass(frozen=True)
class TiledLayout(ImageLayout):
    """Tiles in reading order, the whole image last; an image that fits into one tile is that tile alone.

    Each head gives two maps, coarse and fine. Channels are those of all layers' coarse maps, then of all fine ones.
    """

    geometry: ImageGeometry
    """Its grid is that of the tiles put together."""
    tokens: tuple[int, ...]
    image_token_id: int
    """Id of the tokens that are cells; the others are separators between the tiles."""
    rows: int
    """Tiles from top to bottom."""
    columns: int
    """Tiles from left to right."""

    @property
    def ids(self) -> tuple[int, ...]:
        """Ids of the cells and separators."""
        return self.tokens

    @property
    def views(self) -> int:
        """Tiles and the whole image."""
        tiles = self.rows * self.columns
        return tiles + 1 if tiles > 1 else 1

    def maps(self, rows: Tensor) -> Tensor:
        """Fine maps of the joined tiles and coarse maps, where a cell's attention is shared by the cells it covers."""
        layers, heads, phrases, columns = rows.shape
        if columns != len(self.tokens):
            raise ValueError(f"image columns: expected {len(self.tokens)}, got {columns}")
        places = [i for i, token in enumerate(self.tokens) if token == self.image_token_id]
        height, width = self.geometry.grid_height // self.rows, self.geometry.grid_width // self.columns
        cells = rows[..., places].reshape(layers * heads, phrases, self.views, height, width).transpose(0, 1)
        whole = cells[:, :, -1] / (self.rows * self.columns)
        coarse = whole.repeat_interleave(self.rows, dim=-2).repeat_interleave(self.columns, dim=-1)
        tiles = cells[:, :, : self.rows * self.columns].unflatten(2, (self.rows, self.columns))
        fine = tiles.transpose(3, 4).reshape(coarse.shape)
        return torch.cat([coarse, fine], dim=1)
