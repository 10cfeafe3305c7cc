"""Qwen3-VL with a mixture of experts in its decoder: attention is that of Qwen3-VL."""

from __future__ import annotations

from flmm_core.families.qwen3_vl import Qwen3VlFamily


class Qwen3VlMoeFamily(Qwen3VlFamily):
    """Qwen3-VL of 30 and 235 billion parameters."""

    model_type = "qwen3_vl_moe"
