"""A simulated image of the table, and the ground truth of every object in it.

Frames (REP 103): the *table frame* has its origin on the table top at the centre, z up, metres. The *camera optical frame*
has z forward, x right, y down. The *view frame* lies in the table plane as the camera sees it: ``right`` points to the right
of the image, ``away`` from the camera towards the back of the table; its origin is the table's centre.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

import numpy as np

KINDS = (
    "mug",
    "bowl",
    "bottle",
    "can",
    "box",
    "plate",
    "lemon",
    "banana",
    "cube",
    "ball",
    "cylinder",
    "cone",
    "pan",
    "ring",
)
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "white", "black")
KIND_COLORS = {"lemon": ("yellow", "green"), "banana": ("yellow", "green")}
"""Kinds with fewer colours than ``COLORS``."""


@dataclass(frozen=True)
class SceneObject:
    """One object on the table."""

    kind: str
    color: str
    position: tuple[float, float, float]
    """Centre of its footprint in the table frame, metres."""
    right: float
    """View frame, metres."""
    away: float
    """View frame, metres."""
    mask: np.ndarray
    """``[H, W]`` bool: its visible pixels."""
    scale: float = 1.0
    """Size relative to the standard size of its kind."""
    pose: np.ndarray = field(default_factory=lambda: np.eye(4))
    """``[4, 4]`` float64: body frame of its mesh in the table frame."""

    @property
    def name(self) -> str:
        """Colour and kind, such as "red mug"."""
        return f"{self.color} {self.kind}"


@dataclass(frozen=True)
class Scene:
    """An image of the table with ground truth."""

    image: np.ndarray
    """``[H, W, 3]`` uint8 RGB."""
    depth: np.ndarray
    """``[H, W]`` float32: metres along the optical axis (REP 118)."""
    objects: tuple[SceneObject, ...]
    intrinsics: np.ndarray
    """``[3, 3]`` float64 pinhole matrix K, pixels."""
    camera_pose: np.ndarray
    """``[4, 4]`` float64: camera optical frame in the table frame."""


def scene_seed(split: str, seed: int, index: int) -> int:
    """Seed of scene ``index`` of a data set or of the demo; splits of one ``seed`` share no scene."""
    return int(np.random.SeedSequence([zlib.crc32(split.encode()), seed, index]).generate_state(1)[0])
