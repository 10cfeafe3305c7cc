"""Families of LMMs, found by the ``model_type`` of the model's config. A new one is one file and one line here."""

from __future__ import annotations

from flmm_core.families.base import LmmFamily, LoadedLmm, PreparedImage
from flmm_core.families.llava import LlavaFamily

FAMILIES: dict[str, type[LmmFamily]] = {family.model_type: family for family in (LlavaFamily,)}


def family_of(model_type: str) -> type[LmmFamily]:
    """Look a family up.

    Raises:
        ValueError: names the families that exist.
    """
    if model_type not in FAMILIES:
        raise ValueError(f"LMM family: expected one of {', '.join(sorted(FAMILIES))}, got {model_type!r}")
    return FAMILIES[model_type]


__all__ = ["FAMILIES", "LmmFamily", "LoadedLmm", "PreparedImage", "family_of"]
