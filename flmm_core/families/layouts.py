"""Places of an image's cells among the columns of a sequence, and the conversion of attention to them into maps.

A layout belongs to one image of one prompt. This file is independent of models and words.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from flmm_core.types import ImageGeometry


class ImageLayout(ABC):
    """One image in a sequence. Subclasses are frozen dataclasses of their family."""

    geometry: ImageGeometry
    """Position of the image in the frame that the maps cover; its grid is that of the maps."""

    @property
    @abstractmethod
    def ids(self) -> tuple[int, ...]:
        """Token ids of the image in the sequence: ``m`` adjacent columns.

        They include the tokens between its cells: newline, row and column tokens.
        """

    @abstractmethod
    def maps(self, rows: Tensor) -> Tensor:
        """Attention to the image's columns as maps.

        Args:
            rows: ``[l, q, n, m]`` float32, of the layers that give maps; ``n`` is 1 or more.

        Returns:
            ``[n, c, h, w]``, channels in the order that the heads expect, over the frame of :attr:`geometry`.
        """


@dataclass(frozen=True)
class GridLayout(ImageLayout):
    """One grid of cells in reading order, channels layer-major: LLaVA, DeepSeek-VL, MGM, HPT."""

    geometry: ImageGeometry
    image_token_id: int
    skipped: int = 0
    """Columns before the first cell, for instance of a class token."""

    @property
    def ids(self) -> tuple[int, ...]:
        """One image token for each column."""
        return (self.image_token_id,) * (self.skipped + self.geometry.grid_height * self.geometry.grid_width)

    def maps(self, rows: Tensor) -> Tensor:
        """Maps ``[n, c, h, w]`` of the cells, in reading order."""
        layers, heads, phrases, columns = rows.shape
        if columns != len(self.ids):
            raise ValueError(f"image columns: expected {len(self.ids)}, got {columns}")
        cells = rows[..., self.skipped :]
        shape = (layers * heads, phrases, self.geometry.grid_height, self.geometry.grid_width)
        return cells.reshape(shape).transpose(0, 1)
