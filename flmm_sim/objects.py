"""Triangle meshes of the 14 kinds of objects, made from profiles and tubes.

Every mesh stands in its *body frame*: metres, z up, the lowest point at z = 0, the bounding box centred on the z axis. Faces
run counter-clockwise seen from outside. Nothing here knows about MuJoCo, colours of the scene or cameras.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


def _join(parts: Sequence[Part]) -> Part:
    offsets = np.cumsum([0] + [len(part.vertices) for part in parts[:-1]])
    faces = np.concatenate([part.faces + offset for part, offset in zip(parts, offsets, strict=True)])
    return Part(np.concatenate([part.vertices for part in parts]), faces.astype(np.int32), parts[0].finish)


def _lathe(profile: Profile, finish: str = BODY, around: int = 36) -> Part:
    """Turn a profile about the z axis; it must run up the outside, then inwards at the top."""
    angle = np.linspace(0, 2 * np.pi, around, endpoint=False)
    unit = np.stack([np.cos(angle), np.sin(angle), np.zeros(around)], -1)
    up = np.array([0.0, 0.0, 1.0])
    return _join([_grid(np.array([r * unit + z * up for r, z in run]), finish) for run in profile])


def _tube(path: np.ndarray, radii: np.ndarray, normal: Sequence[float], finish: str = BODY, around: int = 14) -> Part:
    """Tube with round sections along a path ``[N, 3]`` that lies in the plane with the given normal; ends are closed."""
    tangent = np.gradient(path, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    first = np.broadcast_to(np.asarray(normal, float), path.shape)
    second = np.cross(tangent, first)
    angle = np.linspace(0, 2 * np.pi, around, endpoint=False)
    ring = np.cos(angle)[None, :, None] * first[:, None] + np.sin(angle)[None, :, None] * second[:, None]
    side = path[:, None] + radii[:, None, None] * ring
    start, end = np.repeat(path[:1, None], around, 1), np.repeat(path[-1:, None], around, 1)
    caps = [np.concatenate([start, side[:1]]), np.concatenate([side[-1:], end])]
    return _join([_grid(piece, finish) for piece in (caps[0], side, caps[1])])


def _block(size: Sequence[float], centre: Sequence[float], finish: str = BODY, bevel: float = 0.0025) -> Part:
    """Cuboid with slightly bevelled edges."""
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


def _arc(radius: float, start: float, stop: float, count: int = 13) -> np.ndarray:
    """``[count, 2]`` points on a circle about the origin between two angles in degrees."""
    angle = np.radians(np.linspace(start, stop, count))
    return radius * np.stack([np.cos(angle), np.sin(angle)], -1)


def _mug() -> list[Part]:
    r, h, wall = 0.040, 0.092, 0.004
    cup = _lathe(
        [
            [(0, 0), (r - 0.003, 0)],
            [(r - 0.003, 0), (r, 0.004), (r, h - 0.001)],
            [(r, h - 0.001), (r - wall / 2, h + 0.001), (r - wall, h - 0.001)],
            [(r - wall, h - 0.001), (r - wall, 0.010), (r - 0.010, 0.006)],
            [(r - 0.010, 0.006), (0, 0.006)],
        ]
    )
    arc = _arc(1.0, -100, 100)
    path = np.stack([r - 0.003 + 0.028 * (arc[:, 0] + 0.17), np.zeros(13), h / 2 + 0.030 * arc[:, 1]], -1)
    return [cup, _tube(path, np.full(13, 0.0062), (0, 1, 0))]


def _bowl() -> list[Part]:
    r, h, wall = 0.066, 0.056, 0.004
    outer = [(0.030 + (r - 0.030) * np.sin(t), 0.004 + (h - 0.004) * (1 - np.cos(t))) for t in np.linspace(0.1, np.pi / 2, 10)]
    inner = [(max(x - wall, 0), z + wall * 0.6) for x, z in reversed(outer)]
    rim = [outer[-1], (r - wall / 2, h + 0.002), inner[0]]
    return [_lathe([[(0, 0), (0.028, 0)], [(0.028, 0), outer[0]], outer, rim, inner, [inner[-1], (0, inner[-1][1])]])]


def _bottle() -> list[Part]:
    r, neck = 0.034, 0.012
    shoulder = [(neck + (r - neck) * (1 + np.cos(t)) / 2, 0.112 + 0.045 * t / np.pi) for t in np.linspace(0, np.pi, 10)]
    glass = _lathe(
        [
            [(0, 0), (r - 0.004, 0)],
            [(r - 0.004, 0), (r, 0.004), *shoulder, (neck, 0.180)],
            [(neck, 0.180), (0, 0.180)],
        ]
    )
    cap = _lathe([[(0, 0.176), (0.015, 0.176)], [(0.015, 0.176), (0.015, 0.200)], [(0.015, 0.200), (0, 0.200)]], CONTRAST)
    return [glass, cap]


def _can() -> list[Part]:
    r, h = 0.037, 0.105
    body = _lathe([[(0, 0.009), (r, 0.009)], [(r, 0.009), (r, h - 0.010)], [(r, h - 0.010), (0, h - 0.010)]])
    foot = _lathe(
        [[(0, 0), (r - 0.006, 0)], [(r - 0.006, 0), (r + 0.0002, 0.009)], [(r + 0.0002, 0.009), (0, 0.009)]],
        METAL,
    )
    top = h - 0.010
    lid = _lathe(
        [
            [(r + 0.0002, top), (r - 0.005, h)],
            [(r - 0.005, h), (r - 0.008, h)],
            [(r - 0.008, h), (r - 0.009, h - 0.004)],
            [(r - 0.009, h - 0.004), (0, h - 0.004)],
        ],
        METAL,
    )
    tab = _block((0.022, 0.010, 0.002), (0.004, 0, h - 0.003), DARK, bevel=0.0005)
    return [body, foot, lid, tab]


def _box() -> list[Part]:
    length, width, height, tape = 0.150, 0.082, 0.064, 0.024
    carton = _block((length, width, height), (0, 0, height / 2))
    stripe = _block((length + 0.0016, tape, height + 0.0008), (0, 0, height / 2 + 0.0004), CONTRAST, bevel=0.0005)
    return [carton, stripe]


def _plate() -> list[Part]:
    r = 0.084
    dish = _lathe(
        [
            [(0, 0), (0.050, 0)],
            [(0.050, 0), (0.058, 0.005), (r, 0.016)],
            [(r, 0.016), (r - 0.001, 0.0185), (r - 0.003, 0.019)],
            [(r - 0.003, 0.019), (0.060, 0.0105)],
            [(0.060, 0.0105), (0.053, 0.006)],
            [(0.053, 0.006), (0, 0.006)],
        ],
        around=48,
    )
    return [dish]


def _lemon() -> list[Part]:
    along = np.linspace(-1, 1, 41)
    length, radius = 0.054, 0.034
    belly = np.sqrt(np.clip(1 - (along / 0.86) ** 2, 0, 1))
    tip = 0.26 * np.sqrt(np.clip(1 - along**2, 0, 1)) / 0.51
    thickness = radius * (belly**4 + tip**4) ** 0.25
    turned = _lathe([list(zip(thickness.tolist(), (length * along).tolist(), strict=True))], around=28)
    return [Part(turned.vertices[:, [2, 0, 1]] + np.array([0, 0, radius]), turned.faces)]


def _banana() -> list[Part]:
    bend, thick = 0.085, 0.0195
    share = np.linspace(0, 1, 25)
    radii = thick * np.clip(np.minimum(share / 0.30, (1 - share) / 0.22), 0, 1) ** 0.65
    radii = np.maximum(radii, np.where(share < 0.5, 0.0065, 0.0055))
    path = np.concatenate([_arc(bend, -62, 62, 25), np.full((25, 1), thick)], axis=1)
    tip = _arc(bend, 61.5, 66, 3)
    stem = _arc(bend, -72, -61.5, 4)
    ends = [
        _tube(np.concatenate([arc, np.full((len(arc), 1), thick)], axis=1), np.full(len(arc), r), (0, 0, 1), DARK)
        for arc, r in ((tip, 0.0058), (stem, 0.0062))
    ]
    return [_tube(path, radii, (0, 0, 1), around=18), _join(ends)]


def _cube() -> list[Part]:
    return [_block((0.080, 0.080, 0.080), (0, 0, 0.040))]


def _ball() -> list[Part]:
    r = 0.042
    return [_lathe([[(r * np.sin(t), r - r * np.cos(t)) for t in np.linspace(0, np.pi, 21)]])]


def _cylinder() -> list[Part]:
    r, h, edge = 0.034, 0.125, 0.0015
    return [_lathe([[(0, 0), (r, 0)], [(r, 0), (r, h - edge)], [(r, h - edge), (r - edge, h)], [(r - edge, h), (0, h)]])]


def _cone() -> list[Part]:
    r, h = 0.047, 0.125
    return [_lathe([[(0, 0), (r, 0)], [(r, 0), (0, h)]])]


def _pan() -> list[Part]:
    r, h, wall = 0.066, 0.036, 0.004
    body = _lathe(
        [
            [(0, 0), (r - 0.010, 0)],
            [(r - 0.010, 0), (r, h)],
            [(r, h), (r - wall, h)],
            [(r - wall, h), (r - 0.014, 0.005)],
            [(r - 0.014, 0.005), (0, 0.005)],
        ]
    )
    count = 9
    path = np.stack([np.linspace(r - 0.004, r + 0.100, count), np.zeros(count), np.linspace(h - 0.008, h + 0.010, count)], -1)
    radii = np.full(count, 0.0085)
    radii[0] = 0.006
    return [body, _tube(path, radii, (0, 1, 0), DARK)]


def _ring() -> list[Part]:
    big, small = 0.044, 0.0155
    loop = np.linspace(-np.pi / 2, 1.5 * np.pi, 21)
    return [_lathe([[(big + small * np.cos(t), small + small * np.sin(t)) for t in loop]])]


_MAKERS: dict[str, Callable[[], list[Part]]] = {
    "mug": _mug,
    "bowl": _bowl,
    "bottle": _bottle,
    "can": _can,
    "box": _box,
    "plate": _plate,
    "lemon": _lemon,
    "banana": _banana,
    "cube": _cube,
    "ball": _ball,
    "cylinder": _cylinder,
    "cone": _cone,
    "pan": _pan,
    "ring": _ring,
}


def make_parts(kind: str, scale: float = 1.0) -> list[Part]:
    """Parts of one object of a kind, in its body frame.

    Raises:
        ValueError: the kind is unknown.
    """
    if kind not in _MAKERS:
        raise ValueError(f"unknown kind {kind!r}: expected one of {', '.join(_MAKERS)}")
    parts = _MAKERS[kind]()
    points = np.concatenate([part.vertices for part in parts])
    low, high = points.min(axis=0), points.max(axis=0)
    shift = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
    return [Part(scale * (part.vertices - shift), part.faces, part.finish) for part in parts]
