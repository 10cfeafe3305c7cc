"""Facts about a scene: the places of objects and their relations. This file makes no random choices and writes no text.

Facts that depend on a few pixels or centimetres are None; the margins below define how clear a fact must be to be asked about.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from flmm_sim import wording
from flmm_sim.scene import Scene, SceneObject

SIDE_MARGIN = 0.06
"""Least horizontal gap for left and right, in image widths."""
AWAY_MARGIN = 0.07
"""Least gap for in front and behind, in metres of the view frame."""
NEXT_RATIO = 0.65
"""The nearest neighbour counts as "next to" when the second nearest is at least 1 / NEXT_RATIO times as far."""
NEAREST_RATIO = 0.75
"""A relation names the nearest object on that side when the second nearest is at least 1 / NEAREST_RATIO times as far."""

_HORIZONTAL = ((0.0, 0.38, "left"), (0.44, 0.56, "middle"), (0.62, 1.0, "right"))
"""Ranges of the mask's centroid in image widths; in between no questions are asked."""
_VERTICAL = ((0.0, 0.37, "back"), (0.43, 0.53, "centre"), (0.59, 1.0, "front"))
"""Ranges of the mask's centroid in image heights."""


class SceneFacts:
    """Facts about a scene's objects, by their indices."""

    def __init__(self, scene: Scene) -> None:
        self.objects = scene.objects
        height, width = scene.image.shape[:2]
        self.x = [float(np.nonzero(o.mask)[1].mean()) / width for o in scene.objects]
        """x of each mask's centroid, in image widths."""
        self.y = [float(np.nonzero(o.mask)[0].mean()) / height for o in scene.objects]
        """y of each mask's centroid, in image heights."""
        self.names = [o.name for o in scene.objects]
        self.kinds = [o.kind for o in scene.objects]
        self.colors = [o.color for o in scene.objects]

    def __len__(self) -> int:
        return len(self.objects)

    def of_name(self, name: str) -> list[int]:
        """Objects of a colour and kind."""
        return _positions(self.names, name)

    def of_kind(self, kind: str) -> list[int]:
        """Objects of a kind."""
        return _positions(self.kinds, kind)

    def of_color(self, color: str) -> list[int]:
        """Objects of a colour."""
        return _positions(self.colors, color)

    def zone(self, index: int) -> str | None:
        """Words for the place of an object in the image; None near a boundary."""
        horizontal = [word for low, high, word in _HORIZONTAL if low <= self.x[index] <= high]
        vertical = [word for low, high, word in _VERTICAL if low <= self.y[index] <= high]
        return wording.ZONES[horizontal[0], vertical[0]] if horizontal and vertical else None

    def holds(self, relation: str, index: int, anchor: int) -> bool | None:
        """Whether ``index`` is left of, right of, in front of or behind ``anchor``; None if it is ambiguous."""
        if relation in ("left", "right"):
            gap, margin = self.x[anchor] - self.x[index], SIDE_MARGIN
        else:
            gap, margin = self.objects[anchor].away - self.objects[index].away, AWAY_MARGIN
        if abs(gap) < margin:
            return None
        return (gap > 0) == (relation in ("left", "front"))

    def holders(self, relation: str, anchor: int) -> list[int] | None:
        """The objects that stand in ``relation`` to ``anchor``; None if one of them is ambiguous."""
        others = [i for i in range(len(self)) if i != anchor]
        if relation == "next":
            return self.clearly_nearest(anchor, others, NEXT_RATIO)
        held = [self.holds(relation, i, anchor) for i in others]
        return None if None in held else [i for i, holds in zip(others, held, strict=True) if holds]

    def clearly_nearest(self, anchor: int, candidates: Sequence[int], ratio: float) -> list[int] | None:
        """The candidate nearest to ``anchor``, if there is any.

        Args:
            anchor: distances are measured from here, on the table.
            candidates: indices of other objects.
            ratio: None is returned when the nearest is more than ``ratio`` times as far as the second nearest.
        """
        near = sorted((_distance(self.objects[anchor], self.objects[i]), i) for i in candidates)
        if len(near) > 1 and near[0][0] > ratio * near[1][0]:
            return None
        return [index for _, index in near[:1]]


def _positions(words: Sequence[str], wanted: str) -> list[int]:
    return [index for index, word in enumerate(words) if word == wanted]


def _distance(a: SceneObject, b: SceneObject) -> float:
    return float(np.hypot(a.right - b.right, a.away - b.away))
