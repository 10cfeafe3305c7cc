"""Qwen3-VL and models trained from it (Cosmos-Reason 2): as Qwen2.5-VL, without a default system turn.

Features of the vision tower's middle layers are added to the image's columns behind the first decoder layers (deepstack). They
are part of the tower's output, so they reach the model with the merged ones.
"""

from __future__ import annotations

from flmm_core.families.boxes import JSON_THOUSANDTHS
from flmm_core.families.qwen2_5_vl import ASSISTANT, USER, Qwen25VlFamily


class Qwen3VlFamily(Qwen25VlFamily):
    """Qwen3-VL and Cosmos-Reason 2."""

    model_type = "qwen3_vl"
    boxes = JSON_THOUSANDTHS
    plain_template = USER + ASSISTANT
