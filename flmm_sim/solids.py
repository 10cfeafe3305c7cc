"""Triangle meshes of simple solids: bodies of revolution, tubes and cuboids.

Coordinates are in metres. Faces run counter-clockwise seen from outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Profile = Sequence[Sequence[tuple[float, float]]]
"""Smooth runs of (radius, height); edges between two runs stay sharp."""

BODY, METAL, DARK, CONTRAST = "body", "metal", "dark", "contrast"
"""Finish of a part: the object's colour, silver, dark grey, or a tone that stands out from the object's colour."""


@dataclass(frozen=True)
class Part:
    """A closed piece of an object with one finish."""

    vertices: np.ndarray
    """``[V, 3]`` float64: metres, body frame."""
    faces: np.ndarray
    """``[F, 3]`` int32."""
    finish: str = BODY


def _grid(points: np.ndarray, finish: str) -> Part:
    """Part from rings of points ``[rings, around, 3]``; degenerate triangles and unused vertices are dropped."""
    rings, around, _ = points.shape
    row, col = np.meshgrid(np.arange(rings - 1), np.arange(around), indexing="ij")
    after = (col + 1) % around
    a, b = row * around + col, row * around + after
    c, d = (row + 1) * around + after, (row + 1) * around + col
    faces = np.stack([np.stack([a, b, c], -1), np.stack([a, c, d], -1)]).reshape(-1, 3)
    return _compact(points.reshape(-1, 3), faces, finish)


def _compact(vertices: np.ndarray, faces: np.ndarray, finish: str) -> Part:
    p, q, r = (vertices[faces[:, i]] for i in range(3))
    faces = faces[np.linalg.norm(np.cross(q - p, r - p), axis=1) > 1e-10]
    used, renumbered = np.unique(faces, return_inverse=True)
    return Part(vertices[used], renumbered.reshape(-1, 3).astype(np.int32), finish)


def join(parts: Sequence[Part]) -> Part:
    """One part of several, with the finish of the first."""
    offsets = np.cumsum([0] + [len(part.vertices) for part in parts[:-1]])
    faces = np.concatenate([part.faces + offset for part, offset in zip(parts, offsets, strict=True)])
    return Part(np.concatenate([part.vertices for part in parts]), faces.astype(np.int32), parts[0].finish)


def lathe(profile: Profile, finish: str = BODY, around: int = 36) -> Part:
    """A body of revolution.

    Args:
        profile: turned about the z axis; it must run up the outside, then inwards at the top.
        finish: of the part.
        around: vertices of a ring.
    """
    angle = np.linspace(0, 2 * np.pi, around, endpoint=False)
    unit = np.stack([np.cos(angle), np.sin(angle), np.zeros(around)], -1)
    up = np.array([0.0, 0.0, 1.0])
    return join([_grid(np.array([r * unit + z * up for r, z in run]), finish) for run in profile])


def tube(path: np.ndarray, radii: np.ndarray, normal: Sequence[float], finish: str = BODY, around: int = 14) -> Part:
    """A tube with round sections and closed ends.

    Args:
        path: ``[N, 3]`` centres of the sections, in one plane.
        radii: ``[N]`` of the sections.
        normal: unit normal of that plane.
        finish: of the part.
        around: vertices of a section.
    """
    tangent = np.gradient(path, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    first = np.broadcast_to(np.asarray(normal, float), path.shape)
    second = np.cross(tangent, first)
    angle = np.linspace(0, 2 * np.pi, around, endpoint=False)
    ring = np.cos(angle)[None, :, None] * first[:, None] + np.sin(angle)[None, :, None] * second[:, None]
    side = path[:, None] + radii[:, None, None] * ring
    start, end = np.repeat(path[:1, None], around, 1), np.repeat(path[-1:, None], around, 1)
    caps = [np.concatenate([start, side[:1]]), np.concatenate([side[-1:], end])]
    return join([_grid(piece, finish) for piece in (caps[0], side, caps[1])])


def block(size: Sequence[float], centre: Sequence[float], finish: str = BODY, bevel: float = 0.0025) -> Part:
    """A cuboid with bevelled edges.

    Args:
        size: along x, y and z.
        centre: of the cuboid.
        finish: of the part.
        bevel: width that is cut off at each edge.
    """
    half = np.asarray(size, float) / 2
    corners = np.array([[x, y, z] for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)], float)
    points = np.concatenate([corners * (half - bevel + bevel * np.eye(3)[axis]) for axis in range(3)])

    def corner(x: int, y: int, z: int, axis: int) -> int:
        return axis * 8 + (x > 0) * 4 + (y > 0) * 2 + (z > 0)

    faces: list[list[int]] = []
    signs = (-1, 1)
    for axis in range(3):
        for s in signs:
            ring = [_around(axis, s, u, v) for u, v in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
            faces += _quad([corner(*c, axis) for c in ring])
            second = (axis + 1) % 3
            for t in signs:
                ends = [_around(axis, s, t, v) for v in signs]
                faces += _quad(
                    [corner(*ends[0], axis), corner(*ends[1], axis), corner(*ends[1], second), corner(*ends[0], second)]
                )
    for x, y, z in corners.astype(int).tolist():
        faces.append([corner(x, y, z, axis) for axis in range(3)])
    outward = np.array(faces)
    p, q, r = (points[outward[:, i]] for i in range(3))
    inside_out = np.einsum("fi,fi->f", np.cross(q - p, r - p), p + q + r) < 0
    outward[inside_out] = outward[inside_out][:, ::-1]
    separate = points[outward].reshape(-1, 3)
    return Part(separate + np.asarray(centre, float), np.arange(len(separate), dtype=np.int32).reshape(-1, 3), finish)


def _around(axis: int, along: int, second: int, third: int) -> tuple[int, int, int]:
    signs = [0, 0, 0]
    signs[axis], signs[(axis + 1) % 3], signs[(axis + 2) % 3] = along, second, third
    return signs[0], signs[1], signs[2]


def _quad(corners: Sequence[int]) -> list[list[int]]:
    a, b, c, d = corners
    return [[a, b, c], [a, c, d]]


def arc(radius: float, start: float, stop: float, count: int = 13) -> np.ndarray:
    """``[count, 2]`` points on a circle about the origin between two angles in degrees."""
    angle = np.radians(np.linspace(start, stop, count))
    return radius * np.stack([np.cos(angle), np.sin(angle)], -1)
