"""Grids of image tokens, known or measured: one grid, or tiles with or without the whole image; and the layout on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from flmm_core.families.layouts import ImageLayout
from flmm_core.types import ImageGeometry

_NEW_VIEW = 1 / 16
"""A next token that is higher by more than this part of the image begins a view."""
_NEW_ROW = 1 / 200
"""A next token that is further left, or in a single column lower, by more than this begins a row."""
_WHOLE = 0.85
"""A view that covers more than this part of both sides is the whole image."""


@dataclass(frozen=True)
class ViewGrid:
    """Views of an image in the order of its features: tiles in reading order, and perhaps the whole image."""

    tile_rows: int
    tile_columns: int
    rows: int
    """Rows of cells of each tile."""
    columns: int
    whole: tuple[int, int] | None = None
    """Rows and columns of cells of the whole image, if it is seen beside its tiles."""
    whole_place: int = 0
    """Place of the whole image among the views."""
    idle: tuple[int, ...] = ()
    """Features that show nothing, for instance breaks between rows."""

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> ViewGrid:
        """From :meth:`record`, read from JSON."""
        whole = record["whole"]
        return cls(**{**record, "whole": whole and tuple(whole), "idle": tuple(record["idle"])})

    def record(self) -> dict[str, Any]:
        """Fields for JSON."""
        return asdict(self)

    @property
    def cells(self) -> tuple[int, int]:
        """Rows and columns of the finest grid over the image."""
        return self.tile_rows * self.rows, self.tile_columns * self.columns

    @property
    def features(self) -> int:
        """Number of features of the image."""
        return sum(height * width for height, width in self.views) + len(self.idle)

    @property
    def views(self) -> list[tuple[int, int]]:
        """Rows and columns of cells of each view."""
        tiles = [(self.rows, self.columns)] * (self.tile_rows * self.tile_columns)
        return tiles if self.whole is None else [*tiles[: self.whole_place], self.whole, *tiles[self.whole_place :]]


def measured_grid(centres: np.ndarray) -> ViewGrid:
    """The grid that the centres of features form.

    Args:
        centres: ``[n, 2]`` x and y in parts of the image; NaN for features that show nothing.

    Raises:
        ValueError: they form no even grid over the image; names what was found.
    """
    shown = ~np.isnan(centres).any(axis=1)
    if not shown.any():
        raise ValueError("image tokens: expected some that change with the pixels, got none")
    views = _views(centres[shown])
    whole = _whole(views)
    tiles = [view for i, view in enumerate(views) if i != whole]
    sizes = sorted({view.shape[:2] for view in tiles})
    if len(sizes) != 1:
        raise ValueError(f"image tokens: expected tiles of one size, got {' and '.join(f'{h} x {w}' for h, w in sizes)} cells")
    middles = np.array([tile.mean(axis=(0, 1)) for tile in tiles])
    starts = [0, *(np.flatnonzero(np.diff(middles[:, 0]) < -_NEW_VIEW) + 1), len(tiles)]
    lengths = {int(end - start) for start, end in pairwise(starts)}
    if len(lengths) != 1:
        raise ValueError(f"image tokens: expected as many tiles in each row, got rows of {sorted(lengths)} tiles")
    (tile_columns,) = lengths
    grid = ViewGrid(
        tile_rows=len(starts) - 1,
        tile_columns=tile_columns,
        rows=sizes[0][0],
        columns=sizes[0][1],
        whole=None if whole is None else views[whole].shape[:2],
        whole_place=whole or 0,
        idle=tuple(np.flatnonzero(~shown).tolist()),
    )
    joined = np.stack(tiles).reshape(grid.tile_rows, tile_columns, grid.rows, grid.columns, 2).transpose(0, 2, 1, 3, 4)
    _check_even(joined.reshape(*grid.cells, 2))
    if whole is not None:
        _check_even(views[whole])
    return grid


def _views(centres: np.ndarray) -> list[np.ndarray]:
    """Centres ``[rows, columns, 2]`` of each view: a whole image, a tile, or tiles below each other."""
    right, down = np.diff(centres, axis=0).T
    rows = np.split(
        centres, np.flatnonzero((right < -_NEW_ROW) | (down < -_NEW_VIEW) | ((right < _NEW_ROW) & (down > _NEW_ROW))) + 1
    )
    views: list[list[np.ndarray]] = [[rows[0]]]
    for before, row in pairwise(rows):
        if row[:, 1].mean() < before[:, 1].mean() - _NEW_VIEW or abs(row[0, 0] - before[0, 0]) > _NEW_VIEW:
            views.append([])
        views[-1].append(row)
    for view in views:
        lengths = [len(row) for row in view]
        if len(set(lengths)) != 1:
            raise ValueError(
                f"image tokens: expected rows of equal length, got {len(view)} rows of {min(lengths)} to {max(lengths)} tokens"
            )
    return [np.stack(view) for view in views]


def _whole(views: list[np.ndarray]) -> int | None:
    """Place of the view of the whole image beside its tiles; None if there is none."""
    if len(views) == 1:
        return None
    whole = [i for i, view in enumerate(views) if _covers(view)]
    if len(whole) == len(views) == 2:  # tiles below each other are one view; the other one has fewer cells
        return min(whole[::-1], key=lambda i: views[i].size)
    if len(whole) > 1:
        raise ValueError(f"image tokens: expected one view of the whole image beside its tiles, got {len(whole)}")
    return whole[0] if whole else None


def _covers(view: np.ndarray) -> bool:
    """Whether a view is the whole image; a single row or column of cells says nothing about its side."""
    spans = [np.ptp(view[..., axis]) * size / (size - 1) for axis, size in ((0, view.shape[1]), (1, view.shape[0])) if size > 1]
    return bool(spans) and min(spans) > _WHOLE


def _check_even(centres: np.ndarray) -> None:
    """Refuse centres ``[h, w, 2]`` that are off an even grid over the image by a cell or more."""
    height, width = centres.shape[:2]
    even = np.stack(np.meshgrid((np.arange(width) + 0.5) / width, (np.arange(height) + 0.5) / height), axis=-1)
    off = float((np.abs(centres - even) * (width, height)).max())
    if off >= 1:
        raise ValueError(
            f"image tokens: expected an even grid over the image, got {height} x {width} tokens of which one is {off:.1f} cells"
            " from its place"
        )


@dataclass(frozen=True)
class ViewsLayout(ImageLayout):
    """Tokens on a grid of views. A head's map is its attention to a place in all views: the whole is added to the tiles."""

    geometry: ImageGeometry
    tokens: tuple[int, ...]
    image_token_id: int
    """Id of the tokens that are features; the others are separators."""
    grid: ViewGrid

    @property
    def ids(self) -> tuple[int, ...]:
        """Ids of cells and separators."""
        return self.tokens

    def maps(self, rows: Tensor) -> Tensor:
        """Maps ``[n, l * q, h, w]`` of the joined tiles; a cell of the whole image is shared by the cells that it covers."""
        layers, heads, phrases, columns = rows.shape
        if columns != len(self.tokens):
            raise ValueError(f"image columns: expected {len(self.tokens)}, got {columns}")
        features = [i for i, token in enumerate(self.tokens) if token == self.image_token_id]
        idle = set(self.grid.idle)
        places = [column for feature, column in enumerate(features) if feature not in idle]
        views = self.grid.views
        cells = rows[..., places].reshape(layers * heads, phrases, -1).transpose(0, 1)
        parts = [
            part.unflatten(-1, view) for part, view in zip(cells.split([h * w for h, w in views], dim=-1), views, strict=True)
        ]
        whole = parts.pop(self.grid.whole_place) if self.grid.whole else None
        tiles = torch.stack(parts, dim=2).unflatten(2, (self.grid.tile_rows, self.grid.tile_columns))
        maps = tiles.transpose(3, 4).reshape(phrases, layers * heads, *self.grid.cells)
        if whole is None:
            return maps
        ratio = whole.shape[-2] * whole.shape[-1] / (maps.shape[-2] * maps.shape[-1])
        return maps + F.interpolate(whole, self.grid.cells, mode="bilinear") * ratio
