"""Families of LMMs, selected by the raw config of a checkpoint. A new family is one file and one entry here.

Kinds without an entry are measured: :class:`~flmm_core.families.auto.AutoFamily`.
"""

from __future__ import annotations

from flmm_core.errors import LoadError
from flmm_core.families.auto import AutoFamily
from flmm_core.families.base import ImageFeatures, LmmFamily, LmmShape, LoadedLmm, PreparedImages
from flmm_core.families.checkpoint import Checkpoint
from flmm_core.families.deepseek_vl import DeepseekVlFamily
from flmm_core.families.deepseek_vl_hybrid import DeepseekVlHybridFamily
from flmm_core.families.gemma3 import Gemma3Family
from flmm_core.families.glm4v import Glm4vFamily
from flmm_core.families.hpt import HptAir15Family, HptAirFamily
from flmm_core.families.internvl import InternVLFamily
from flmm_core.families.layouts import GridLayout, ImageLayout
from flmm_core.families.llava import LlavaFamily
from flmm_core.families.llava_next import LlavaNextMistralFamily, LlavaNextVicunaFamily
from flmm_core.families.llava_onevision import LlavaOnevisionFamily
from flmm_core.families.mgm import MgmFamily, MgmGemmaFamily, MgmHdFamily
from flmm_core.families.mistral3 import Mistral3Family
from flmm_core.families.near_misses import near_miss
from flmm_core.families.paligemma import PaliGemmaFamily
from flmm_core.families.qwen2_5_vl import Qwen25VlFamily
from flmm_core.families.qwen2_vl import Qwen2VlFamily
from flmm_core.families.qwen3_5 import Qwen35Family
from flmm_core.families.qwen3_vl import Qwen3VlFamily
from flmm_core.families.qwen3_vl_moe import Qwen3VlMoeFamily
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
    "qwen2_vl": Qwen2VlFamily,
    "qwen2_5_vl": Qwen25VlFamily,
    "qwen3_vl": Qwen3VlFamily,
    "qwen3_vl_moe": Qwen3VlMoeFamily,
    "qwen3_5": Qwen35Family,
    "internvl": InternVLFamily,
    "smolvlm": SmolVlmFamily,
    "gemma3": Gemma3Family,
    "paligemma": PaliGemmaFamily,
    "glm4v": Glm4vFamily,
    "mistral3": Mistral3Family,
}
"""Families by the project's names."""


def family_name(family: type[LmmFamily], checkpoint: Checkpoint) -> str:
    """The project's name of a family; of a measured one, the type of its model."""
    names = [name for name, one in FAMILIES.items() if one is family]
    return names[0] if names else f"{checkpoint.config.get('model_type')}, measured"


def family_of(checkpoint: Checkpoint) -> type[LmmFamily]:
    """The one family that a checkpoint belongs to; of a kind that none claims, the one that is measured.

    Raises:
        LoadError: it is no LMM of transformers, or the families of its kind refuse it; the message gives their reasons.
    """
    kin = {name: family for name, family in FAMILIES.items() if family.claims(checkpoint)}
    if not kin and AutoFamily.claims(checkpoint):
        return AutoFamily
    if not kin:
        raise LoadError(f"LMM {checkpoint.source}: {near_miss(checkpoint, FAMILIES)}")
    doubts = {name: family.doubt(checkpoint) for name, family in kin.items()}
    sure = [name for name, doubt in doubts.items() if not doubt]
    if len(sure) == 1:
        return kin[sure[0]]
    if sure:
        raise LoadError(f"LMM family: expected one that takes {checkpoint.source}, got {' and '.join(sure)}")
    raise LoadError(f"LMM {checkpoint.source}: " + "; ".join(f"{name}: {doubt}" for name, doubt in doubts.items()))


__all__ = [
    "FAMILIES",
    "AutoFamily",
    "Checkpoint",
    "GridLayout",
    "ImageFeatures",
    "ImageLayout",
    "LmmFamily",
    "LmmShape",
    "LoadedLmm",
    "PreparedImages",
    "family_name",
    "family_of",
]
