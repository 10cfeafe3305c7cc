"""flmm-tabletop, the small model for simulated table tops: its vision tower, its SAM, its training, its weights.

The core finds it by its name (flmm_core/weights/sources.py), so that it loads like any other model. Importing this package
loads no PyTorch.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flmm_core.pipeline import GroundingPipeline

MODEL = Path(__file__).parent / "model"
"""Folder of the weights that come with the package: ``lmm``, ``heads`` and ``sam``."""


def load_pipeline(**options: object) -> GroundingPipeline:
    """Load the shipped model.

    Args:
        options: entries of :class:`~flmm_core.config.GroundingConfig` other than the model's parts, for instance ``device``.

    Raises:
        DeviceError: this machine has no such device.
        ValueError: an option is out of range.
        TypeError: an option is unknown.
    """
    from flmm_core.config import DEFAULT_MODEL
    from flmm_core.pipeline import GroundingPipeline

    return GroundingPipeline.from_pretrained(DEFAULT_MODEL, DEFAULT_MODEL, DEFAULT_MODEL, **options)


def register_formats() -> None:
    """Make the model's classes known: the tower to transformers' auto classes, the SAM's format to the core.

    The core calls it when it looks up a model; more calls change nothing.
    """
    from flmm_tabletop import sam_tiny, vision_tower  # noqa: F401  each registers its class when it is imported
