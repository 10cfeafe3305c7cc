"""DeepSeek-VL with two vision towers (7B): SAM takes the frame, SigLIP a small copy of it; both give the same grid.

Preprocessing is the published heads': the copy is made from the frame's exact values, where transformers' processor makes
it from rounded ones.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional as F
from transformers import DeepseekVLHybridForConditionalGeneration, PreTrainedModel, PreTrainedTokenizerBase

from flmm_core.families.deepseek_vl import DeepseekVlFamily, Pixels


class DeepseekVlHybridFamily(DeepseekVlFamily):
    """DeepSeek-VL-7B, and models of its architecture."""

    model_type = "deepseek_vl_hybrid"
    model_class = DeepseekVLHybridForConditionalGeneration
    tower = "HybridVisionTower"
    frame_prefix = "high_res_"

    def __init__(self, *, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, pixels: Pixels) -> None:
        super().__init__(model=model, tokenizer=tokenizer, pixels=pixels)
        config: Any = model.config
        self.small = int(config.vision_config.image_size)

    @classmethod
    def frame_config(cls, config: Any) -> Any:
        """Config of the SAM tower."""
        return config.high_res_vision_config

    def views(self, frames: Tensor) -> dict[str, Tensor]:
        """The frames for SAM, small copies for SigLIP."""
        copies = F.interpolate(frames, size=(self.small, self.small), mode="bilinear", antialias=True)
        return {"pixel_values": copies, "high_res_pixel_values": frames}
