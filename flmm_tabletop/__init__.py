"""flmm-tabletop, the small model for simulated table tops: its vision tower, its SAM, its training.

``import flmm_tabletop`` makes the parts known: the tower to transformers' auto classes, the SAM to
:func:`flmm_core.checkpoints.load_sam`. The core does not know this package.
"""

from flmm_tabletop import sam_tiny, vision_tower

__all__ = ["sam_tiny", "vision_tower"]
