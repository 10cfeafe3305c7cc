"""Qwen3.5: one decoder layer in four has full attention and gives maps; the others are linear and give none.

Full layers gate the output of attention after the softmax, which does not change its rows. Linear layers keep a state of fixed
size instead of keys and values, so the cache is of the model's own class.
"""

from __future__ import annotations

from typing import Any

from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

from flmm_core.families.boxes import JSON_THOUSANDTHS
from flmm_core.families.qwen2_5_vl import ASSISTANT, USER, Qwen25VlFamily


class Qwen35Family(Qwen25VlFamily):
    """Qwen3.5, answering without a thinking phase."""

    model_type = "qwen3_5"
    boxes = JSON_THOUSANDTHS
    reads_batches = False
    plain_template = USER + ASSISTANT + "<think>\n\n</think>\n\n"

    @classmethod
    def map_layers(cls, text: PreTrainedConfig) -> tuple[int, ...]:
        """Layers of full attention."""
        kinds: Any = text.layer_types
        return tuple(i for i, kind in enumerate(kinds) if kind == "full_attention")

    def new_cache(self, model: PreTrainedModel) -> DynamicCache:
        """Keys and values for full layers, a state for linear ones."""
        return DynamicCache(config=model.config)
