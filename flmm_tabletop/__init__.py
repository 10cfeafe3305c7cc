"""flmm-tabletop, the small model for simulated table tops: its vision tower, its SAM, its training, its weights.

``import flmm_tabletop`` makes it known: the tower to transformers' auto classes, the SAM and the name "flmm-tabletop" to
:mod:`flmm_core.checkpoints`. The core does not know this package.
"""

from pathlib import Path

from flmm_core.checkpoints import register_model
from flmm_core.config import DEFAULT_MODEL
from flmm_tabletop import sam_tiny, vision_tower

MODEL = Path(__file__).parent / "model"
"""Folder of the weights that come with the package: ``lmm``, ``heads`` and ``sam``."""

register_model(DEFAULT_MODEL, MODEL)

__all__ = ["MODEL", "sam_tiny", "vision_tower"]
