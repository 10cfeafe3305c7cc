"""The camera of an image: intrinsics within sense, lens distortion, rays of pixels, and which depths are measurements."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.polynomial import Polynomial

_FOCAL = (0.05, 1000.0)
"""Least and largest focal length, in long sides of the image: fields of view from 0.06 to 169 degrees."""
_OFF_CENTRE = 10.0
"""Largest distance of the principal point from the middle of the image, in long sides: images may be cut from larger ones."""
_DEPTHS = (1e-4, 1e4)
"""Least and largest depth that is a measurement, metres."""
_COEFFICIENTS = {"plumb_bob": (4, 5), "rational_polynomial": (8,), "equidistant": (4,)}
"""Numbers of coefficients by the model's name in sensor_msgs."""
_ITERATIONS = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 20, 1e-3)
_STEEPEST = 1000.0
"""Largest tangent of the angle between a ray and the optical axis."""
_RETURNS = 0.5
"""Largest distance, in pixels, of a ray's projection from its pixel: beyond the range of a model, rays are meaningless."""


class CameraError(ValueError):
    """Intrinsics or distortion that cannot be those of an image's camera; the message is one line."""


@dataclass(frozen=True)
class Distortion:
    """Lens distortion of an image that is not rectified.

    Args:
        model: ``plumb_bob``, ``rational_polynomial`` (OpenCV's pinhole model) or ``equidistant`` (its fisheye model).
        coefficients: ``[k]`` float64, in OpenCV's order.

    Raises:
        CameraError: unknown model, or coefficients that do not belong to it.
    """

    model: str
    coefficients: np.ndarray

    def __post_init__(self) -> None:
        if self.model not in _COEFFICIENTS:
            known = ", ".join(_COEFFICIENTS)
            raise CameraError(f"unsupported distortion model: expected one of {known}, got {self.model[:40]!r}")
        counts = _COEFFICIENTS[self.model]
        if len(self.coefficients) not in counts or not np.isfinite(self.coefficients).all():
            numbers = " or ".join(map(str, counts))
            got = [float(f"{value:.6g}") for value in self.coefficients[:14]]
            raise CameraError(f"distortion of model {self.model}: expected {numbers} finite coefficients, got {got}")


def check_intrinsics(intrinsics: np.ndarray, height: int, width: int) -> None:
    """Refuse intrinsics with which no position can be computed.

    Args:
        intrinsics: ``[3, 3]`` pinhole matrix, pixels.
        height: of the image, pixels.
        width: of the image, pixels.

    Raises:
        CameraError: no focal length, or one, or a principal point, that no camera of such an image has.
    """
    focal = intrinsics[0, 0], intrinsics[1, 1]
    if not np.isfinite(intrinsics).all() or min(focal) <= 0:
        raise CameraError(f"the camera info has no focal length: expected fx, fy > 0, got {focal[0]:g}, {focal[1]:g}")
    longest = max(height, width)
    low, high = _FOCAL[0] * longest, _FOCAL[1] * longest
    if not low <= min(focal) <= max(focal) <= high:
        expected = f"expected fx, fy of {low:g} to {high:g} pixels for {width}x{height}"
        raise CameraError(f"the focal length does not fit the image: {expected}, got {focal[0]:g}, {focal[1]:g}")
    centre = intrinsics[0, 2], intrinsics[1, 2]
    if max(abs(centre[0] - width / 2), abs(centre[1] - height / 2)) > _OFF_CENTRE * longest:
        expected = f"expected cx, cy within {_OFF_CENTRE * longest:g} pixels of the middle of {width}x{height}"
        raise CameraError(f"the principal point does not fit the image: {expected}, got {centre[0]:g}, {centre[1]:g}")


def measured(depth: np.ndarray) -> np.ndarray:
    """``[H, W]`` bool: which values of a depth image, metres, are measurements."""
    return (depth >= _DEPTHS[0]) & (depth <= _DEPTHS[1])  # also leaves out NaN


def rays(shape: tuple[int, ...], left: int, top: int, intrinsics: np.ndarray, distortion: Distortion | None) -> np.ndarray:
    """Rays of the pixels of a part of an image.

    Args:
        shape: height and width of the part.
        left: its first column in the image.
        top: its first row.
        intrinsics: ``[3, 3]`` pinhole matrix of the image.
        distortion: of the lens; None for a rectified image.

    Returns:
        ``[h, w, 3]`` float64: the point at depth 1 of each pixel; NaN for pixels that the distortion model does not reach.
    """
    rows, columns = np.mgrid[top : top + shape[0], left : left + shape[1]].astype(np.float64)
    if distortion is None:
        x = (columns - intrinsics[0, 2]) / intrinsics[0, 0]
        y = (rows - intrinsics[1, 2]) / intrinsics[1, 1]
        return np.stack([x, y, np.ones_like(x)], axis=2)
    pixels = np.stack([columns, rows], axis=2).reshape(-1, 1, 2)
    return _undistorted(pixels, intrinsics, distortion).reshape(*shape, 3)


def _undistorted(pixels: np.ndarray, intrinsics: np.ndarray, distortion: Distortion) -> np.ndarray:
    """``[k, 3]`` rays of pixels ``[k, 1, 2]``, each verified by its projection."""
    focal, centre = intrinsics[[0, 1], [0, 1]], intrinsics[:2, 2]
    camera = np.array([[focal[0], 0, centre[0]], [0, focal[1], centre[1]], [0, 0, 1]])
    if distortion.model == "equidistant":
        flat = cv2.fisheye.undistortPoints(pixels, camera, distortion.coefficients)[:, 0]
    else:
        flat = cv2.undistortPointsIter(pixels, camera, distortion.coefficients, np.eye(3), np.eye(3), _ITERATIONS)[:, 0]
    flat[~(np.abs(flat) < _STEEPEST).all(axis=1)] = np.nan
    away = np.abs(_distorted(flat, distortion) * focal + centre - pixels[:, 0]).max(axis=1)
    flat[~(away < _RETURNS)] = np.nan
    return np.concatenate([flat, np.ones((len(flat), 1))], axis=1)


def _distorted(flat: np.ndarray, distortion: Distortion) -> np.ndarray:
    """``[k, 2]``: where points at depth 1, ``[k, 2]``, appear, at depth 1."""
    x, y = flat.T
    squared = x * x + y * y
    if distortion.model == "equidistant":
        length = np.sqrt(squared)
        angle = np.arctan(length)
        scale = Polynomial([1, *distortion.coefficients])(angle * angle)
        return flat * (angle * scale / np.maximum(length, 1e-12))[:, None]
    k1, k2, p1, p2, k3, k4, k5, k6 = np.pad(distortion.coefficients, (0, 8 - len(distortion.coefficients)))
    radial = Polynomial([1, k1, k2, k3])(squared) / Polynomial([1, k4, k5, k6])(squared)
    return np.stack(
        [
            x * radial + 2 * p1 * x * y + p2 * (squared + 2 * x * x),
            y * radial + p1 * (squared + 2 * y * y) + 2 * p2 * x * y,
        ],
        axis=1,
    )
