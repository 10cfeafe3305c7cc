"""Random choices of a scene that need no rendering: objects, camera pose and places of the objects.

Images use OpenCV's convention: pixel (u, v) has its centre at the integers, u to the right, v down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from flmm_sim.scene import COLORS, KIND_COLORS, KINDS

LYING_SHARE = {"cylinder": 0.35, "bottle": 0.2}
"""Share of a kind's objects that lie on their side; the others stand upright."""
FILL = {"ring": 0.6, "banana": 0.6, "pan": 0.6, "mug": 0.8, "lemon": 0.85, "bottle": 0.8}
"""Share of its convex outline in the image that an unoccluded object covers, for kinds where it is clearly below 1."""
_GAP = 0.006
"""Least distance between two footprints, metres."""
_FACING = 24
_ANGLES = np.arange(_FACING) * 2 * np.pi / _FACING
_DIRECTIONS = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], -1)


@dataclass(frozen=True)
class CameraView:
    """Pose and intrinsics of the camera."""

    height: int
    width: int
    fovy: float
    """Vertical field of view, degrees."""
    intrinsics: np.ndarray
    """``[3, 3]`` float64 pinhole matrix K, pixels."""
    pose: np.ndarray
    """``[4, 4]`` float64: camera optical frame in the table frame."""

    @property
    def right(self) -> np.ndarray:
        """``[2]`` unit vector in the table plane to the right of the image."""
        axis = self.pose[:2, 0]
        return axis / np.linalg.norm(axis)

    @property
    def away(self) -> np.ndarray:
        """``[2]`` unit vector in the table plane from the camera to the back."""
        x, y = self.right
        return np.array([-y, x])

    def project(self, points: np.ndarray) -> np.ndarray:
        """Pixels ``[N, 2]`` of points ``[N, 3]`` in the table frame."""
        local = (points - self.pose[:3, 3]) @ self.pose[:3, :3]
        pixels = local @ self.intrinsics.T
        return pixels[:, :2] / pixels[:, 2:]

    def on_table(self, pixel: np.ndarray) -> np.ndarray:
        """Intersection of the ray through a pixel ``[2]`` with the plane of the table top: ``[2]`` metres, table frame."""
        ray = self.pose[:3, :3] @ np.linalg.solve(self.intrinsics, np.append(pixel, 1.0))
        origin = self.pose[:3, 3]
        return (origin - ray * origin[2] / ray[2])[:2]


@dataclass(frozen=True)
class Placement:
    """Pose and outline of one object."""

    centre: np.ndarray
    """``[2]`` centre of its footprint's bounding box, table frame, metres."""
    rotation: np.ndarray
    """``[3, 3]`` body frame in the table frame."""
    origin: np.ndarray
    """``[3]`` origin of the body frame, table frame, metres."""
    outline: np.ndarray
    """``[K, 2]`` float32: convex outline in the image, pixels."""
    reach: np.ndarray
    """``[24]``: support of the footprint in the table's plane, metres."""


def allowed_colors(kind: str) -> tuple[str, ...]:
    """Colours of a kind."""
    return KIND_COLORS.get(kind, COLORS)


def check_objects(objects: Sequence[tuple[str, str]], most_of_a_kind: int) -> tuple[tuple[str, str], ...]:
    """The requested (kind, color) pairs, checked.

    Raises:
        ValueError: there are none, a kind or colour is unknown, or there are more objects of a kind than the pool holds.
    """
    if not objects:
        raise ValueError("expected at least one object, got none")
    for kind, color in objects:
        if kind not in KINDS:
            raise ValueError(f"unknown kind {kind!r}: expected one of {', '.join(KINDS)}")
        if color not in allowed_colors(kind):
            raise ValueError(f"unknown color {color!r} for kind {kind!r}: expected one of {', '.join(allowed_colors(kind))}")
    kinds = [kind for kind, _ in objects]
    for kind in kinds:
        if kinds.count(kind) > most_of_a_kind:
            raise ValueError(f"too many objects of kind {kind!r}: expected at most {most_of_a_kind}, got {kinds.count(kind)}")
    return tuple((kind, color) for kind, color in objects)


def choose_objects(rng: np.random.Generator, most_of_a_kind: int) -> tuple[tuple[str, str], ...]:
    """2 to 7 (kind, color) pairs; some scenes share a colour or a kind, about one in eight has identical pairs."""
    count = int(rng.choice(6, p=(0.12, 0.18, 0.22, 0.20, 0.16, 0.12))) + 2
    shared_color = rng.choice(COLORS) if rng.random() < 0.35 else None
    shared_kind = rng.choice(KINDS) if rng.random() < 0.35 else None
    identical = rng.random() < 0.13
    chosen: list[tuple[str, str]] = []
    if identical:
        kind = str(rng.choice(KINDS))
        copies = int(rng.integers(2, min(count, 3) + 1))
        chosen = [(kind, str(rng.choice(allowed_colors(kind))))] * copies
    while len(chosen) < count:
        shares = len(chosen) < 3
        kind = str(shared_kind if shared_kind is not None and shares else rng.choice(KINDS))
        colors = allowed_colors(kind)
        use_color = shared_color is not None and rng.random() < 0.6 and shared_color in colors
        color = str(shared_color if use_color else rng.choice(colors))
        kinds = [other for other, _ in chosen]
        if (kind, color) in chosen or kinds.count(kind) >= most_of_a_kind:
            shared_kind = None if kinds.count(kind) >= len(colors) else shared_kind
            shared_color = None if use_color else shared_color
            continue
        chosen.append((kind, color))
    return tuple(chosen)


def choose_camera(rng: np.random.Generator, height: int, width: int, count: int) -> CameraView:
    """A camera that looks down at the table by 30 to 60 degrees, from any side; farther away if there are many objects."""
    azimuth, elevation = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(30, 60))
    roll, fovy = np.radians(rng.normal(0, 1.5)), rng.uniform(32, 46)
    focal = height / 2 / np.tan(np.radians(fovy) / 2)
    pixels_per_metre = (height / 240) * (rng.uniform(440, 550) - 14 * max(count - 3, 0))
    distance = focal / pixels_per_metre
    target = np.append(rng.uniform(-0.05, 0.05, 2), 0.02)
    backward = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
    right = np.cross([0, 0, 1], backward)
    right /= np.linalg.norm(right)
    down = np.cross(-backward, right)
    pose = np.eye(4)
    pose[:3, 0] = np.cos(roll) * right + np.sin(roll) * down
    pose[:3, 1] = -np.sin(roll) * right + np.cos(roll) * down
    pose[:3, 2] = -backward
    pose[:3, 3] = target + distance * backward
    intrinsics = np.array([[focal, 0, (width - 1) / 2], [0, focal, (height - 1) / 2], [0, 0, 1]])
    return CameraView(height, width, float(fovy), intrinsics, pose)


def _rotation(rng: np.random.Generator, kind: str) -> np.ndarray:
    yaw = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(yaw), -np.sin(yaw), 0], [np.sin(yaw), np.cos(yaw), 0], [0, 0, 1]])
    if rng.random() >= LYING_SHARE.get(kind, 0.0):
        return turn
    return turn @ np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]])


def _place_one(
    rng: np.random.Generator,
    points: np.ndarray,
    kind: str,
    view: CameraView,
    others: Sequence[Placement],
    half: tuple[float, float],
) -> Placement | None:
    """A free place for one object wholly in the image and on the table, or None if this sample does not fit."""
    rotation = _rotation(rng, kind)
    turned = points @ rotation.T
    low, high = turned.min(axis=0), turned.max(axis=0)
    turned = turned - np.append((low[:2] + high[:2]) / 2, low[2])
    shift = turned[0] - points[0] @ rotation.T
    size = np.array([view.width, view.height])
    if others and rng.random() < 0.5:
        near = others[int(rng.integers(len(others)))]
        pixel = near.outline.mean(axis=0) + view.height * np.array(
            [rng.normal(0, 0.06), rng.choice((-1, 1)) * rng.uniform(0.08, 0.24)]
        )
    else:
        pixel = rng.uniform(0.08, 0.95, 2) * size
    centre = view.on_table(pixel)
    if (np.abs(centre) > np.asarray(half) - 0.05).any():
        return None
    reach = (turned[:, :2] @ _DIRECTIONS.T).max(axis=0)
    for other in others:
        apart = _DIRECTIONS @ (other.centre - centre) - reach - np.roll(other.reach, _FACING // 2)
        if apart.max() < _GAP:
            return None
    origin = np.append(centre, 0.0) + shift
    pixels = view.project(turned + np.append(centre, 0.0))
    margin = 0.008 * view.width
    if (pixels < margin).any() or (pixels > size - 1 - margin).any():
        return None
    return Placement(centre, rotation, origin, cv2.convexHull(pixels.astype(np.float32))[:, 0], reach)


def visible_shares(view: CameraView, placements: Sequence[Placement]) -> np.ndarray:
    """Estimated visible share of each object's outline, ``[N]``, by painting farther objects first."""
    painted = np.zeros((view.height, view.width), np.uint8)
    order = np.argsort([-float(view.away @ placement.centre) for placement in placements])
    for index in order:
        cv2.fillConvexPoly(painted, np.round(placements[index].outline).astype(np.int32), int(index) + 1)
    counts = np.bincount(painted.ravel(), minlength=len(placements) + 1)[1:]
    areas = np.array([max(cv2.contourArea(placement.outline), 1.0) for placement in placements])
    return counts / areas


def place_objects(
    rng: np.random.Generator,
    bodies: Sequence[tuple[str, np.ndarray]],
    view: CameraView,
    half: tuple[float, float],
    least_share: float,
) -> list[Placement] | None:
    """Places for objects given as (kind, hull points ``[P, 3]``), or None if this sample does not fit."""
    placements: list[Placement] = []
    for kind, points in bodies:
        for _ in range(40):
            placement = _place_one(rng, points, kind, view, placements, half)
            if placement is None:
                continue
            if visible_shares(view, [*placements, placement]).min() >= least_share:
                placements.append(placement)
                break
        else:
            return None
    return placements
