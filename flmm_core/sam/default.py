"""The SAM for an LMM when the user names none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flmm_core.weights import sources
from flmm_core.weights.folders import CONFIG_FILE, read_json

STOCK_SAM = "facebook/sam-vit-base"
"""SAM ViT-B of the Hub (Apache-2.0, 375 MB): for real images, and for every engine, which SAM 2 is not."""


def default_sam(lmm: str | Path) -> str:
    """Source of the SAM for an LMM, as for :func:`~flmm_core.sam.checkpoints.load_sam`; nothing is downloaded.

    Args:
        lmm: source of the LMM.

    Returns:
        A registered model's SAM for its LMM and for LMMs with the same kind of vision tower, which was made for the same
        images; else :data:`STOCK_SAM`.

    Raises:
        LoadError: there is no such LMM.
    """
    folder = Path(sources.located("lmm", lmm))
    for name, model in sources.registered_models().items():
        if folder.is_dir() and _tower(folder) == _tower(model / "lmm") is not None:
            return name
    return STOCK_SAM


def _tower(lmm: Path) -> Any:
    """Kind of an LMM's vision tower, if its config says it."""
    vision = (read_json(lmm / CONFIG_FILE, "LMM") if (lmm / CONFIG_FILE).is_file() else {}).get("vision_config")
    return vision.get("model_type") if isinstance(vision, dict) else None
