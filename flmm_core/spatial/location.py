"""Locates an object in space from its mask, a depth image and the camera's intrinsics.

All positions are metres in the camera's optical frame (REP 103): x right, y down, z forward. For an object on
a flat surface the box covers the whole object, including the estimated hidden side; for any other object what is visible.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from flmm_core.spatial.camera import Distortion, check_intrinsics, measured, rays
from flmm_core.spatial.support import ring_width, standing_box, surfaces_around

_FEWEST = 12
"""Least number of points for a position."""
_ERODED = 2
"""Pixels that are eroded from the mask, as depth at edges mixes two surfaces ..."""
_KEPT = 0.5
"""... while at least this share of the mask remains."""
_SPREADS = 3.0
"""Depths farther than this number of standard deviations (from the MAD) from the median are outliers ..."""
_NEAR = 0.02
"""... unless they are within this distance, in metres."""
_ABOVE = 0.004
"""Points lower than this above a surface, in metres, belong to the surface ..."""
_STANDS = 0.3
"""... and an object with less than this share of its points above it does not stand on it."""
_ROBUST = (2.0, 98.0)
"""Percentiles between which an extent is measured."""


class NoDepthError(ValueError):
    """Too little depth to locate an object, or a location that is not finite; the message is one line."""


@dataclass(frozen=True)
class Location:
    """Position, extent and oriented box of an object, all finite.

    Raises:
        NoDepthError: a value is not finite.
    """

    points: np.ndarray
    """``[k, 3]`` float32: points of the object, without edges and outliers."""
    centroid: np.ndarray
    """``[3]`` float64: centre of the whole object if it stands on a surface, else the mean of its points."""
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
    """``[3]`` float64: normal, towards the camera, of the flat surface that the object stands on; the box is upright on it and
    contains the whole object. None if it stands on no such surface."""

    def __post_init__(self) -> None:
        values = (self.points, self.centroid, self.extent, self.box_center, self.box_axes, self.box_size)
        if not all(np.isfinite(value).all() for value in values):
            raise NoDepthError("expected a location of finite numbers, got one that is not")

    def moved(self, rotation: np.ndarray, translation: np.ndarray) -> Location:
        """The location in another frame.

        Args:
            rotation: ``[3, 3]`` of this frame in the other one.
            translation: ``[3]`` metres, the origin of this frame in the other one.
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


def locate(mask: np.ndarray, depth: np.ndarray, intrinsics: np.ndarray, distortion: Distortion | None = None) -> Location:
    """Locate the object under a mask.

    Args:
        mask: ``[H, W]`` bool.
        depth: ``[H, W]`` float32 metres along the optical axis, registered to the mask's image; values that are not
            finite, or below 0.1 mm or above 10 km, are missing.
        intrinsics: ``[3, 3]`` pinhole matrix K of that image, pixels.
        distortion: of the lens; None for a rectified image.

    Raises:
        NoDepthError: the mask has too few pixels with a depth.
        CameraError: the intrinsics cannot be those of this image.
        ValueError: mask and depth differ in size.
    """
    if mask.shape != depth.shape:
        raise ValueError(f"depth: expected {mask.shape[0]}x{mask.shape[1]} as the mask, got {depth.shape[0]}x{depth.shape[1]}")
    check_intrinsics(intrinsics, *mask.shape)
    # Only the surroundings of the mask are processed, as images may be large and contain many objects.
    around = max(_ERODED, ring_width(mask))
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    left, right = max(0, left - around), left + width + around
    top, bottom = max(0, top - around), top + height + around
    mask, depth = mask[top:bottom, left:right], depth[top:bottom, left:right]
    directions = rays(mask.shape, left, top, intrinsics, distortion)
    reached = np.isfinite(directions[..., 0])
    depth = np.where(reached & measured(depth), depth, np.nan)
    valid = mask & np.isfinite(depth)
    pixels, known = int(mask.sum()), int(valid.sum())
    if known < _FEWEST:
        raise NoDepthError(
            f"too little depth: expected at least {_FEWEST} pixels of the mask with one, got {known} of {pixels}"
        )
    inner, eroded = _inner(mask, valid)
    rows, columns = np.nonzero(valid & inner)
    points = directions[rows, columns] * depth[rows, columns, None].astype(np.float64)
    share = known / pixels
    edge = eroded * float(np.median(points[:, 2])) / intrinsics[0, 0]
    for surface in surfaces_around(mask, depth, directions):
        above = points[surface.heights(points) > _ABOVE]
        if len(above) < max(_FEWEST, _STANDS * len(points)):
            continue
        if (box := standing_box(surface, above, directions[mask & reached], edge)) is not None:
            return _location(above, box.center, box.center, box.axes, box.size, share, surface.normal)
    points = points[_inliers(points[:, 2])]
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


def _inliers(z: np.ndarray) -> np.ndarray:
    """``[k]`` bool: which of the depths ``[k]`` are no outliers."""
    median = np.median(z)
    spread = 1.4826 * np.median(np.abs(z - median))
    return np.abs(z - median) <= max(_SPREADS * spread, _NEAR)


def _inner(mask: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, int]:
    """The eroded mask and the number of eroded pixels, which is less for thin objects and where depth is sparse."""
    inner, eroded = mask, 0
    for _ in range(_ERODED):
        # At the border of the image an object continues, so that is not an edge of it.
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
