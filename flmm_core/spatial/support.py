"""The surface that an object stands on, and the object's box including the side that the camera does not see.

All positions are metres in the camera's optical frame (REP 103).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

RING = 0.35
"""Width of the ring around a mask that is searched for its surface, as a share of the mask's size."""
_GAP = 2
"""Pixels between mask and ring, where depth mixes two surfaces."""
_FEWEST = 50
"""Least number of points of a surface."""
_MOST = 2000
"""Largest number of points of the ring that are used."""
_TRIES = 60
"""Number of planes through three points of the ring that are tried (RANSAC, Fischler and Bolles 1981)."""
_FLAT = 0.004
"""Largest distance, in metres, of a point that belongs to a plane."""
_SHARE = 0.15
"""Least share of the ring's points on a surface."""
_SURFACES = 3
"""Largest number of surfaces that are tried."""
_GRAZING = 0.15
"""Sine of the least angle between the line of sight and a surface."""
_LIFTED, _LIFTED_SHARE = 0.05, 0.5
"""An object does not stand on a surface if its lowest visible points are higher than this, in metres, and than this share of
its height."""
_BOXY = 0.9
"""A footprint that fills at least this share of its smallest rectangle is a rectangle."""
_SEEN = 0.9
"""A footprint whose visible depth is at least this share of its width is visible as a whole."""
_ROBUST = (2.0, 98.0)
"""Percentiles between which a size is measured."""


@dataclass(frozen=True)
class Surface:
    """A plane: ``normal @ point + offset`` is a point's height over it."""

    normal: np.ndarray
    """``[3]`` float64, of length one, towards the camera."""
    offset: float

    def heights(self, points: np.ndarray) -> np.ndarray:
        """Heights ``[k]`` of points ``[k, 3]``, metres."""
        return points @ self.normal + self.offset


@dataclass(frozen=True)
class StandingBox:
    """The box of a whole object on its surface."""

    center: np.ndarray
    """``[3]`` float64."""
    axes: np.ndarray
    """``[3, 3]`` float64 rotation: column ``i`` is axis ``i``, the longest first."""
    size: np.ndarray
    """``[3]`` float64, along these axes."""


def surfaces_around(mask: np.ndarray, depth: np.ndarray, rays: np.ndarray) -> Iterator[Surface]:
    """Planes around a mask, the largest first; near the edge of a table the floor may be the largest.

    Args:
        mask: ``[h, w]`` bool, with some of its surroundings.
        depth: ``[h, w]`` float32 metres; NaN where there is none.
        rays: ``[h, w, 3]`` float64: point at depth 1 of each pixel.
    """
    wide = max(_GAP + 2, ring_width(mask))
    grown = _dilated(mask, wide) & ~_dilated(mask, _GAP) & np.isfinite(depth)
    rows, columns = np.nonzero(grown)
    if len(rows) > _MOST:
        chosen = np.linspace(0, len(rows) - 1, _MOST).astype(int)
        rows, columns = rows[chosen], columns[chosen]
    points = rays[rows, columns] * depth[rows, columns, None].astype(np.float64)
    fewest = max(_FEWEST, _SHARE * len(points))
    rng = np.random.default_rng(0)
    for _ in range(_SURFACES):
        if len(points) < fewest:
            return
        near = _largest_plane(points, rng)
        if near.sum() < fewest:
            return
        inliers, points = points[near], points[~near]
        middle = inliers.mean(axis=0)
        normal = np.linalg.svd(inliers - middle, full_matrices=False)[2][2]
        normal = -normal if normal @ middle > 0 else normal
        if -normal @ middle >= _GRAZING * np.linalg.norm(middle):
            yield Surface(normal, float(-normal @ middle))


def _largest_plane(points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``[k]`` bool: which of the points ``[k, 3]`` lie on the largest plane."""
    triples = points[rng.integers(0, len(points), (_TRIES, 3))]
    normals = np.cross(triples[:, 1] - triples[:, 0], triples[:, 2] - triples[:, 0])
    lengths = np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-12)  # collinear points span no plane
    normals = normals / lengths
    near = np.abs(points @ normals.T - np.einsum("ij,ij->i", normals, triples[:, 0])) < _FLAT
    near[:, lengths[:, 0] <= 1e-12] = False
    return near[:, near.sum(axis=0).argmax()]


def ring_width(mask: np.ndarray) -> int:
    """Width in pixels of the ring around a mask ``[H, W]`` that is searched for its surface."""
    _, _, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return round(RING * max(width, height))


def standing_box(surface: Surface, points: np.ndarray, rays: np.ndarray, edge: float) -> StandingBox | None:
    """The box of an object that stands on a surface, with its hidden side estimated.

    The camera sees the full width and the near side of a footprint. If the visible part is less deep than wide, the footprint
    is assumed to be as deep as wide, but to end where the surface is visible again.

    Args:
        surface: that the object may stand on.
        points: ``[k, 3]`` visible points of the object, above the surface.
        rays: ``[m, 3]`` points at depth 1 of the pixels of its mask.
        edge: metres that were eroded from each edge of the mask.

    Returns:
        None if the object does not stand on the surface.
    """
    heights = surface.heights(points)
    low, top = np.percentile(heights, _ROBUST)
    if low > max(_LIFTED, _LIFTED_SHARE * top):
        return None
    up = surface.normal
    sight = points.mean(axis=0)
    away = sight - (sight @ up) * up
    length = np.linalg.norm(away)
    if length < 1e-6 * np.linalg.norm(sight):  # seen from straight above
        away, length = np.array([0.0, 1.0, 0.0]) - up[1] * up, np.linalg.norm(np.array([0.0, 1.0, 0.0]) - up[1] * up)
    away /= length
    right = np.cross(away, up)
    footprint = np.stack([points @ right, points @ away], axis=1)
    (left_end, near_end), (right_end, far_end) = np.percentile(footprint, _ROBUST, axis=0)
    width = right_end - left_end + 2 * edge
    (middle_x, middle_y), (side_a, side_b), turn = cv2.minAreaRect(footprint.astype(np.float32))
    hull = cv2.contourArea(cv2.convexHull(footprint.astype(np.float32)))
    whole = far_end - near_end >= _SEEN * width
    if whole or hull >= _BOXY * side_a * side_b:
        angle = np.radians(turn)
        first = np.cos(angle) * right + np.sin(angle) * away
        center, axes = np.array([middle_x, middle_y]), [first, np.cross(up, first), up]
        size = [side_a + 2 * edge, side_b + 2 * edge, top]
    else:
        sunk = -surface.offset / (rays @ up)  # where each ray of the mask would meet the surface
        hidden = float(np.percentile((rays * sunk[:, None]) @ away, _ROBUST[1]))
        far_end = max(far_end, min(near_end + width, hidden))
        center, axes = np.array([(left_end + right_end) / 2, (near_end + far_end) / 2]), [right, np.cross(up, right), up]
        size = [width, far_end - near_end, top]
    order = np.argsort(size)[::-1]
    rotation = np.stack([axes[i] for i in order], axis=1)
    if np.linalg.det(rotation) < 0:
        rotation[:, 2] = -rotation[:, 2]
    middle = center[0] * right + center[1] * away + (top / 2 - surface.offset) * up
    return StandingBox(middle, rotation, np.array([size[i] for i in order]))


def _dilated(mask: np.ndarray, pixels: int) -> np.ndarray:
    kernel = np.ones((2 * pixels + 1, 2 * pixels + 1), np.uint8)
    return np.asarray(cv2.dilate(mask.astype(np.uint8), kernel) > 0)
