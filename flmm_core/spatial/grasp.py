"""Grasps of a parallel gripper from above.

All positions are metres in the camera's optical frame (REP 103).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flmm_core.spatial.location import Location

REACH = 0.04
"""Largest distance, in metres, from the top of an object down to the middle of the finger pads: the length of the fingers."""
CLEARANCE = 0.016
"""Least height, in metres, of the middle of the finger pads above the surface."""
MARGIN = 0.016
"""Metres by which the opening of the fingers exceeds the width of the object."""


class NoGraspError(ValueError):
    """The object cannot be grasped from above; the message is one line."""


@dataclass(frozen=True)
class Grasp:
    """A pose of the gripper and the opening of its fingers."""

    position: np.ndarray
    """``[3]`` float64: the point between the finger pads."""
    approach: np.ndarray
    """``[3]`` float64 unit vector: direction of the approach."""
    closing: np.ndarray
    """``[3]`` float64 unit vector, orthogonal to the approach: the fingers close along it."""
    opening: float
    """Distance between the open fingers, metres."""

    @property
    def rotation(self) -> np.ndarray:
        """``[3, 3]``: the gripper's frame, x along ``closing`` and z along ``approach``."""
        return np.stack([self.closing, np.cross(self.approach, self.closing), self.approach], axis=1)


def top_grasp(location: Location, max_opening: float) -> Grasp:
    """Grasp an object across its narrower side, at half its height or as deep as the fingers reach.

    Args:
        location: of an object on a surface.
        max_opening: largest distance between the fingers, metres.

    Raises:
        NoGraspError: the object does not stand on a surface, or is too wide.
    """
    if location.up is None:
        raise NoGraspError("expected a thing that stands on a flat surface, got one that does not")
    upright = int(np.argmax(np.abs(location.box_axes.T @ location.up)))
    narrow = min((i for i in range(3) if i != upright), key=lambda i: location.box_size[i])
    opening = float(location.box_size[narrow]) + MARGIN
    if opening > max_opening:
        raise NoGraspError(
            f"expected a thing narrower than {max_opening - MARGIN:.3f} m, got {location.box_size[narrow]:.3f} m"
        )
    top = float(location.box_size[upright])
    height = max(top / 2, top - REACH, CLEARANCE)
    position = location.box_center + (height - top / 2) * location.up
    return Grasp(position, -location.up, location.box_axes[:, narrow], opening)
