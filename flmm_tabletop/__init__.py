"""flmm-tabletop, the small model for simulated table tops: its vision tower, its SAM, its training, its weights.

The core does not know this package: :func:`register` makes it known through the seams that any model may use.
"""

from pathlib import Path

MODEL = Path(__file__).parent / "model"
"""Folder of the weights that come with the package: ``lmm``, ``heads`` and ``sam``."""


def register() -> None:
    """Make the model known: the tower to transformers' auto classes, its SAM's format and its name to the core."""
    from flmm_core.config import DEFAULT_MODEL
    from flmm_core.weights.sources import register_model
    from flmm_tabletop import sam_tiny, vision_tower  # noqa: F401  each registers its class

    register_model(DEFAULT_MODEL, MODEL)
