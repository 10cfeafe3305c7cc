"""Where the cells of an image are among the columns of a sequence, and how attention to them becomes maps.

A layout belongs to one image of one prompt. It knows cells and columns; it knows nothing of models or words.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from flmm_core.types import ImageGeometry


class ImageLayout(ABC):
    """One image in a sequence. Subclasses are frozen dataclasses of their family."""

    geometry: ImageGeometry
    """Where the image lies in the frame that the maps cover; its grid is that of the maps."""

    @property
    @abstractmethod
    def ids(self) -> tuple[int, ...]:
        """Token ids that stand for the image in the sequence, side by side: ``m`` columns.

        All that comes between its cells belongs to them too: newline, row and column tokens.
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
        """Cells to their places."""
        layers, heads, phrases, columns = rows.shape
        if columns != len(self.ids):
            raise ValueError(f"image columns: expected {len(self.ids)}, got {columns}")
        cells = rows[..., self.skipped :]
        shape = (layers * heads, phrases, self.geometry.grid_height, self.geometry.grid_width)
        return cells.reshape(shape).transpose(0, 1)
