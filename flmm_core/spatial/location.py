"""Where a thing is in space: a mask, the depth under it and the camera's intrinsics.

All positions are metres in the camera's optical frame (REP 103): x right, y down, z forward. Of a thing that stands on a flat
surface the whole is estimated, its hidden side too; of any other thing what is visible.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from flmm_core.spatial.support import ring_width, standing_box, surfaces_around

_FEWEST = 12
"""Points that a position needs."""
_ERODED = 2
"""Pixels that are taken off the mask's edge, where depth bleeds from one surface to the other ..."""
_KEPT = 0.5
"""... as long as this share of the mask is left."""
_SPREADS = 3.0
"""Depths farther than so many standard deviations (robust: MAD) from the median belong to something else ..."""
_NEAR = 0.02
"""... and this, in metres, is never too far."""
_ABOVE = 0.004
"""What is less high over a surface, in metres, is the surface itself ..."""
_STANDS = 0.3
"""... and what is less than this share of a thing above it does not stand on it."""
_ROBUST = (2.0, 98.0)
"""Percentiles between which an extent is measured."""


class NoDepthError(ValueError):
    """There is no depth to tell where something is; the message is one line."""


@dataclass(frozen=True)
class Location:
    """Where a thing is."""

    points: np.ndarray
    """``[k, 3]`` float32: its points, edges and outliers left out."""
    centroid: np.ndarray
    """``[3]`` float64: the middle of the whole thing if it stands on a surface, else the mean of its points."""
    extent: np.ndarray
    """``[3]`` float64: robust size along the frame's axes (2nd to 98th percentile)."""
    box_center: np.ndarray
    """``[3]`` float64: centre of the oriented box."""
    box_axes: np.ndarray
    """``[3, 3]`` float64 rotation: column ``i`` is the box's axis ``i``, the longest first."""
    box_size: np.ndarray
    """``[3]`` float64: robust size along the box's axes."""
    depth_fraction: float
    """Share of the mask's pixels with a depth, in [0, 1]."""
    up: np.ndarray | None
    """``[3]`` float64: normal of the flat surface that it stands on, towards the camera; the box is upright on it, and holds
    the whole thing. None if it stands on none."""

    def moved(self, rotation: np.ndarray, translation: np.ndarray) -> Location:
        """The same in another frame.

        Args:
            rotation: ``[3, 3]`` of this frame in the other one.
            translation: ``[3]`` metres: its origin there.
        """
        points = self.points @ rotation.T.astype(np.float32) + translation.astype(np.float32)
        low, high = np.percentile(points, _ROBUST, axis=0)
        return Location(
            points,
            rotation @ self.centroid + translation,
            (high - low).astype(np.float64),
            rotation @ self.box_center + translation,
            rotation @ self.box_axes,
            self.box_size,
            self.depth_fraction,
            None if self.up is None else rotation @ self.up,
        )


def locate(mask: np.ndarray, depth: np.ndarray, intrinsics: np.ndarray) -> Location:
    """Where the thing under a mask is.

    Args:
        mask: ``[H, W]`` bool.
        depth: ``[H, W]`` float32 metres along the optical axis, registered to the mask's image; what is not finite or not
            above 0 is no depth.
        intrinsics: ``[3, 3]`` pinhole matrix K of that image, pixels.

    Raises:
        NoDepthError: the mask has too few pixels with a depth.
        ValueError: mask and depth differ in size.
    """
    if mask.shape != depth.shape:
        raise ValueError(f"depth: expected {mask.shape[0]}x{mask.shape[1]} as the mask, got {depth.shape[0]}x{depth.shape[1]}")
    # Nothing but the mask's surroundings is looked at: an image may be large, and its things many.
    around = max(_ERODED, ring_width(mask))
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    left, right = max(0, left - around), left + width + around
    top, bottom = max(0, top - around), top + height + around
    mask, depth = mask[top:bottom, left:right], depth[top:bottom, left:right]
    valid = mask & np.isfinite(depth) & (depth > 0)
    pixels, known = int(mask.sum()), int(valid.sum())
    if known < _FEWEST:
        raise NoDepthError(
            f"too little depth: expected at least {_FEWEST} pixels of the mask with one, got {known} of {pixels}"
        )
    rays = _rays(mask.shape, left, top, intrinsics)
    inner, eroded = _inner(mask, valid)
    rows, columns = np.nonzero(valid & inner)
    points = rays[rows, columns] * depth[rows, columns, None].astype(np.float64)
    share = known / pixels
    edge = eroded * float(np.median(points[:, 2])) / intrinsics[0, 0]
    for surface in surfaces_around(mask, depth, rays):
        above = points[surface.heights(points) > _ABOVE]
        if len(above) < max(_FEWEST, _STANDS * len(points)):
            continue
        if (box := standing_box(surface, above, rays[mask], edge)) is not None:
            return _location(above, box.center, box.center, box.axes, box.size, share, surface.normal)
    points = points[_of_one_thing(points[:, 2])]
    axes = _axes(points)
    along = points @ axes
    box_low, box_high = np.percentile(along, _ROBUST, axis=0)
    center = axes @ ((box_low + box_high) / 2)
    return _location(points, points.mean(axis=0), center, axes, box_high - box_low, share, None)


def _location(
    points: np.ndarray,
    centroid: np.ndarray,
    center: np.ndarray,
    axes: np.ndarray,
    size: np.ndarray,
    share: float,
    up: np.ndarray | None,
) -> Location:
    low, high = np.percentile(points, _ROBUST, axis=0)
    return Location(points.astype(np.float32), centroid, high - low, center, axes, size, share, up)


def _rays(shape: tuple[int, ...], left: int, top: int, intrinsics: np.ndarray) -> np.ndarray:
    """``[h, w, 3]`` float64: point at depth 1 of each pixel of a part of the image."""
    rows, columns = np.mgrid[top : top + shape[0], left : left + shape[1]].astype(np.float64)
    x = (columns - intrinsics[0, 2]) / intrinsics[0, 0]
    y = (rows - intrinsics[1, 2]) / intrinsics[1, 1]
    return np.stack([x, y, np.ones_like(x)], axis=2)


def _of_one_thing(z: np.ndarray) -> np.ndarray:
    """Which depths are near to the others."""
    median = np.median(z)
    spread = 1.4826 * np.median(np.abs(z - median))
    return np.abs(z - median) <= max(_SPREADS * spread, _NEAR)


def _inner(mask: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, int]:
    """The mask without its edge, and how many pixels that was; thin things keep theirs, and what has no depth inside."""
    inner, eroded = mask, 0
    for _ in range(_ERODED):
        # Beyond the image's border a thing goes on: that is no edge of it.
        less = cv2.erode(inner.astype(np.uint8), np.ones((3, 3), np.uint8), borderType=cv2.BORDER_REPLICATE) > 0
        if less.sum() < _KEPT * mask.sum() or (less & valid).sum() < _FEWEST:
            break
        inner, eroded = less, eroded + 1
    return inner, eroded


def _axes(points: np.ndarray) -> np.ndarray:
    """Principal axes as a rotation, the longest first."""
    _, vectors = np.linalg.eigh(np.cov(points.T))
    axes = vectors[:, ::-1].copy()
    if np.linalg.det(axes) < 0:
        axes[:, 2] = -axes[:, 2]
    return axes
