"""Families of LMMs, selected by the raw config of a checkpoint. A new family is one file and one entry here."""

from __future__ import annotations

from flmm_core.errors import LoadError
from flmm_core.families.base import ImageFeatures, LmmFamily, LmmShape, LoadedLmm, PreparedImages
from flmm_core.families.checkpoint import Checkpoint
from flmm_core.families.deepseek_vl import DeepseekVlFamily
from flmm_core.families.deepseek_vl_hybrid import DeepseekVlHybridFamily
from flmm_core.families.gemma3 import Gemma3Family
from flmm_core.families.hpt import HptAir15Family, HptAirFamily
from flmm_core.families.internvl import InternVLFamily
from flmm_core.families.layouts import GridLayout, ImageLayout
from flmm_core.families.llava import LlavaFamily
from flmm_core.families.llava_next import LlavaNextMistralFamily, LlavaNextVicunaFamily
from flmm_core.families.llava_onevision import LlavaOnevisionFamily
from flmm_core.families.mgm import MgmFamily, MgmGemmaFamily, MgmHdFamily
from flmm_core.families.paligemma import PaliGemmaFamily
from flmm_core.families.qwen2_5_vl import Qwen25VlFamily
from flmm_core.families.qwen3_5 import Qwen35Family
from flmm_core.families.qwen3_vl import Qwen3VlFamily
from flmm_core.families.smolvlm import SmolVlmFamily

FAMILIES: dict[str, type[LmmFamily]] = {
    "llava": LlavaFamily,
    "llava_next_vicuna": LlavaNextVicunaFamily,
    "llava_next_mistral": LlavaNextMistralFamily,
    "deepseek_vl": DeepseekVlFamily,
    "deepseek_vl_hybrid": DeepseekVlHybridFamily,
    "mgm": MgmFamily,
    "mgm_gemma": MgmGemmaFamily,
    "mgm_hd": MgmHdFamily,
    "hpt_air": HptAirFamily,
    "hpt_air_1_5": HptAir15Family,
    "llava_onevision": LlavaOnevisionFamily,
    "qwen2_5_vl": Qwen25VlFamily,
    "qwen3_vl": Qwen3VlFamily,
    "qwen3_5": Qwen35Family,
    "internvl": InternVLFamily,
    "smolvlm": SmolVlmFamily,
    "gemma3": Gemma3Family,
    "paligemma": PaliGemmaFamily,
}
"""Families by the project's names."""


def family_of(checkpoint: Checkpoint) -> type[LmmFamily]:
    """The one family that a checkpoint belongs to.

    Raises:
        LoadError: no family claims its kind, or those that do refuse it; the message gives their reasons.
    """
    kin = {name: family for name, family in FAMILIES.items() if family.claims(checkpoint)}
    if not kin:
        checkpoint.require("config.json")
        known = ", ".join(sorted(FAMILIES))
        raise LoadError(
            f"LMM family: expected one of {known}, got {checkpoint.config.get('model_type')!r} in {checkpoint.source}"
        )
    doubts = {name: family.doubt(checkpoint) for name, family in kin.items()}
    sure = [name for name, doubt in doubts.items() if not doubt]
    if len(sure) == 1:
        return kin[sure[0]]
    if sure:
        raise LoadError(f"LMM family: expected one that takes {checkpoint.source}, got {' and '.join(sure)}")
    raise LoadError(f"LMM {checkpoint.source}: " + "; ".join(f"{name}: {doubt}" for name, doubt in doubts.items()))


__all__ = [
    "FAMILIES",
    "Checkpoint",
    "GridLayout",
    "ImageFeatures",
    "ImageLayout",
    "LmmFamily",
    "LmmShape",
    "LoadedLmm",
    "PreparedImages",
    "family_of",
]
