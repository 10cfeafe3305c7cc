"""Where a thing is in space: a mask, the depth under it and the camera's intrinsics.

All positions are metres in the camera's optical frame (REP 103): x right, y down, z forward. They are those of the visible
surface: what the camera does not see of a thing is unknown.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

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
_ROBUST = (2.0, 98.0)
"""Percentiles between which an extent is measured."""


class NoDepthError(ValueError):
    """There is no depth to tell where something is; the message is one line."""


@dataclass(frozen=True)
class Location:
    """Where the visible surface of a thing is."""

    points: np.ndarray
    """``[k, 3]`` float32: its points, edges and outliers left out."""
    centroid: np.ndarray
    """``[3]`` float64: their mean."""
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
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    left, right = max(0, left - _ERODED), left + width + _ERODED
    top, bottom = max(0, top - _ERODED), top + height + _ERODED
    mask, depth = mask[top:bottom, left:right], depth[top:bottom, left:right]
    valid = mask & np.isfinite(depth) & (depth > 0)
    pixels, known = int(mask.sum()), int(valid.sum())
    if known < _FEWEST:
        raise NoDepthError(
            f"too little depth: expected at least {_FEWEST} pixels of the mask with one, got {known} of {pixels}"
        )
    rows, columns = np.nonzero(valid & _inner(mask, valid))
    z = depth[rows, columns].astype(np.float64)
    median = np.median(z)
    spread = 1.4826 * np.median(np.abs(z - median))
    near = np.abs(z - median) <= max(_SPREADS * spread, _NEAR)
    rows, columns, z = rows[near], columns[near], z[near]
    x = (columns + left - intrinsics[0, 2]) / intrinsics[0, 0] * z
    y = (rows + top - intrinsics[1, 2]) / intrinsics[1, 1] * z
    points = np.stack([x, y, z], axis=1)
    low, high = np.percentile(points, _ROBUST, axis=0)
    axes = _axes(points)
    along = points @ axes
    box_low, box_high = np.percentile(along, _ROBUST, axis=0)
    return Location(
        points=points.astype(np.float32),
        centroid=points.mean(axis=0),
        extent=high - low,
        box_center=axes @ ((box_low + box_high) / 2),
        box_axes=axes,
        box_size=box_high - box_low,
        depth_fraction=known / pixels,
    )


def _inner(mask: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """The mask without its edge; thin things keep theirs, and what has no depth inside."""
    inner = mask
    for _ in range(_ERODED):
        # Beyond the image's border a thing goes on: that is no edge of it.
        less = cv2.erode(inner.astype(np.uint8), np.ones((3, 3), np.uint8), borderType=cv2.BORDER_REPLICATE) > 0
        if less.sum() < _KEPT * mask.sum() or (less & valid).sum() < _FEWEST:
            break
        inner = less
    return inner


def _axes(points: np.ndarray) -> np.ndarray:
    """Principal axes as a rotation, the longest first."""
    _, vectors = np.linalg.eigh(np.cov(points.T))
    axes = vectors[:, ::-1].copy()
    if np.linalg.det(axes) < 0:
        axes[:, 2] = -axes[:, 2]
    return axes
