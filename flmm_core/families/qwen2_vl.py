"""Qwen2-VL: as Qwen2.5-VL, with boxes in thousandths of the image."""

from __future__ import annotations

from flmm_core.families.boxes import JSON_THOUSANDTHS
from flmm_core.families.qwen2_5_vl import Qwen25VlFamily


class Qwen2VlFamily(Qwen25VlFamily):
    """Qwen2-VL and models trained from it."""

    model_type = "qwen2_vl"
    boxes = JSON_THOUSANDTHS
