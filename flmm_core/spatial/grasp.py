"""How a parallel gripper takes a thing from above.

All positions are metres in the camera's optical frame (REP 103).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flmm_core.spatial.location import Location

REACH = 0.04
"""Metres from a thing's top down to the middle of the fingers' pads, at most: fingers are no longer."""
CLEARANCE = 0.016
"""Metres that the middle of the fingers' pads keeps from the surface, at least."""
MARGIN = 0.016
"""Metres that open fingers are farther apart than the thing is wide."""


class NoGraspError(ValueError):
    """A thing that cannot be taken from above, and why, on one line."""


@dataclass(frozen=True)
class Grasp:
    """Where the gripper goes."""

    position: np.ndarray
    """``[3]`` float64: between the pads of the fingers."""
    approach: np.ndarray
    """``[3]`` float64, of length one: the way there."""
    closing: np.ndarray
    """``[3]`` float64, of length one, across the approach: the fingers close along it."""
    opening: float
    """Metres between the open fingers."""

    @property
    def rotation(self) -> np.ndarray:
        """``[3, 3]``: the gripper's frame, x along ``closing`` and z along ``approach``."""
        return np.stack([self.closing, np.cross(self.approach, self.closing), self.approach], axis=1)


def top_grasp(location: Location, max_opening: float) -> Grasp:
    """Take a thing across its narrower side, at half its height or as deep as fingers reach.

    Args:
        location: of a thing on a surface.
        max_opening: metres between the gripper's fingers when it is open.

    Raises:
        NoGraspError: it stands on no surface, or is too wide.
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
