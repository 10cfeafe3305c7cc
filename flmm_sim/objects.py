"""Triangle meshes of the 14 kinds of objects, composed of solids.

Every mesh stands in its *body frame*: metres, z up, the lowest point at z = 0, the bounding box centred on the z axis. This
file does not depend on MuJoCo, on the scene's colours or on cameras.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from flmm_sim.solids import CONTRAST, DARK, METAL, Part, arc, block, join, lathe, tube


def _mug() -> list[Part]:
    r, h, wall = 0.040, 0.092, 0.004
    cup = lathe(
        [
            [(0, 0), (r - 0.003, 0)],
            [(r - 0.003, 0), (r, 0.004), (r, h - 0.001)],
            [(r, h - 0.001), (r - wall / 2, h + 0.001), (r - wall, h - 0.001)],
            [(r - wall, h - 0.001), (r - wall, 0.010), (r - 0.010, 0.006)],
            [(r - 0.010, 0.006), (0, 0.006)],
        ]
    )
    bow = arc(1.0, -100, 100)
    path = np.stack([r - 0.003 + 0.028 * (bow[:, 0] + 0.17), np.zeros(13), h / 2 + 0.030 * bow[:, 1]], -1)
    return [cup, tube(path, np.full(13, 0.0062), (0, 1, 0))]


def _bowl() -> list[Part]:
    r, h, wall = 0.066, 0.056, 0.004
    outer = [(0.030 + (r - 0.030) * np.sin(t), 0.004 + (h - 0.004) * (1 - np.cos(t))) for t in np.linspace(0.1, np.pi / 2, 10)]
    inner = [(max(x - wall, 0), z + wall * 0.6) for x, z in reversed(outer)]
    rim = [outer[-1], (r - wall / 2, h + 0.002), inner[0]]
    return [lathe([[(0, 0), (0.028, 0)], [(0.028, 0), outer[0]], outer, rim, inner, [inner[-1], (0, inner[-1][1])]])]


def _bottle() -> list[Part]:
    r, neck = 0.034, 0.012
    shoulder = [(neck + (r - neck) * (1 + np.cos(t)) / 2, 0.112 + 0.045 * t / np.pi) for t in np.linspace(0, np.pi, 10)]
    glass = lathe(
        [
            [(0, 0), (r - 0.004, 0)],
            [(r - 0.004, 0), (r, 0.004), *shoulder, (neck, 0.180)],
            [(neck, 0.180), (0, 0.180)],
        ]
    )
    cap = lathe([[(0, 0.176), (0.015, 0.176)], [(0.015, 0.176), (0.015, 0.200)], [(0.015, 0.200), (0, 0.200)]], CONTRAST)
    return [glass, cap]


def _can() -> list[Part]:
    r, h = 0.037, 0.105
    body = lathe([[(0, 0.009), (r, 0.009)], [(r, 0.009), (r, h - 0.010)], [(r, h - 0.010), (0, h - 0.010)]])
    foot = lathe(
        [[(0, 0), (r - 0.006, 0)], [(r - 0.006, 0), (r + 0.0002, 0.009)], [(r + 0.0002, 0.009), (0, 0.009)]],
        METAL,
    )
    top = h - 0.010
    lid = lathe(
        [
            [(r + 0.0002, top), (r - 0.005, h)],
            [(r - 0.005, h), (r - 0.008, h)],
            [(r - 0.008, h), (r - 0.009, h - 0.004)],
            [(r - 0.009, h - 0.004), (0, h - 0.004)],
        ],
        METAL,
    )
    tab = block((0.022, 0.010, 0.002), (0.004, 0, h - 0.003), DARK, bevel=0.0005)
    return [body, foot, lid, tab]


def _box() -> list[Part]:
    length, width, height, tape = 0.150, 0.082, 0.064, 0.024
    carton = block((length, width, height), (0, 0, height / 2))
    stripe = block((length + 0.0016, tape, height + 0.0008), (0, 0, height / 2 + 0.0004), CONTRAST, bevel=0.0005)
    return [carton, stripe]


def _plate() -> list[Part]:
    r = 0.084
    dish = lathe(
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
    turned = lathe([list(zip(thickness.tolist(), (length * along).tolist(), strict=True))], around=28)
    return [Part(turned.vertices[:, [2, 0, 1]] + np.array([0, 0, radius]), turned.faces)]


def _banana() -> list[Part]:
    bend, thick = 0.085, 0.0195
    share = np.linspace(0, 1, 25)
    radii = thick * np.clip(np.minimum(share / 0.30, (1 - share) / 0.22), 0, 1) ** 0.65
    radii = np.maximum(radii, np.where(share < 0.5, 0.0065, 0.0055))
    path = np.concatenate([arc(bend, -62, 62, 25), np.full((25, 1), thick)], axis=1)
    tip = arc(bend, 61.5, 66, 3)
    stem = arc(bend, -72, -61.5, 4)
    ends = [
        tube(np.concatenate([bow, np.full((len(bow), 1), thick)], axis=1), np.full(len(bow), r), (0, 0, 1), DARK)
        for bow, r in ((tip, 0.0058), (stem, 0.0062))
    ]
    return [tube(path, radii, (0, 0, 1), around=18), join(ends)]


def _cube() -> list[Part]:
    return [block((0.080, 0.080, 0.080), (0, 0, 0.040))]


def _ball() -> list[Part]:
    r = 0.042
    return [lathe([[(r * np.sin(t), r - r * np.cos(t)) for t in np.linspace(0, np.pi, 21)]])]


def _cylinder() -> list[Part]:
    r, h, edge = 0.034, 0.125, 0.0015
    return [lathe([[(0, 0), (r, 0)], [(r, 0), (r, h - edge)], [(r, h - edge), (r - edge, h)], [(r - edge, h), (0, h)]])]


def _cone() -> list[Part]:
    r, h = 0.047, 0.125
    return [lathe([[(0, 0), (r, 0)], [(r, 0), (0, h)]])]


def _pan() -> list[Part]:
    r, h, wall = 0.066, 0.036, 0.004
    body = lathe(
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
    return [body, tube(path, radii, (0, 1, 0), DARK)]


def _ring() -> list[Part]:
    big, small = 0.044, 0.0155
    loop = np.linspace(-np.pi / 2, 1.5 * np.pi, 21)
    return [lathe([[(big + small * np.cos(t), small + small * np.sin(t)) for t in loop]])]


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
