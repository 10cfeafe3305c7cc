"""Options of loading the weights of an LMM: number format, device and quantization by bitsandbytes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from transformers import BitsAndBytesConfig, GenerationConfig

_SEES = ("vision_tower", "visual", "vision_model", "multi_modal_projector", "connector", "aligner")
_KEPT = ("lm_head", *(f".*{name}" for name in _SEES))
"""Patterns of the names of modules that are not quantized: the output layer, the vision tower and the projector."""


@dataclass(frozen=True)
class LoadOptions:
    """How to load a model. Its weights go directly from the mapped files to the device."""

    dtype: torch.dtype = torch.float32
    device: torch.device | str = "cpu"
    quantization: str = "none"
    """Quantization of the decoder's matrices: none, int8 (LLM.int8) or int4 (NF4)."""
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    """The checkpoint's generation settings, in place of those in its files."""
    room: Mapping[int, int] | Mapping[str, int] | None = None
    """Most bytes of weights on each of several devices, over which accelerate spreads the layers; None for one device.
    GPUs by their numbers; cpu is main memory, and what has no room goes to the disk."""

    def __post_init__(self) -> None:
        if self.quantization == "none":
            return
        if self.quantization == "int8" and self.dtype == torch.float32:
            raise ValueError("quantization int8: expected dtype bfloat16 or float16, got float32")
        for package in ("bitsandbytes", "accelerate"):
            if find_spec(package) is None:
                raise ValueError(
                    f"quantization {self.quantization}: expected the package {package}, got none; pip install"
                    " 'flmm_ros[quantization]'"
                )

    @property
    def given(self) -> dict[str, Any]:
        """Keywords of ``from_pretrained``."""
        given: dict[str, Any] = {"dtype": self.dtype, "generation_config": self.generation}
        if self.quantization != "none" or (torch.device(self.device).type != "cpu" and find_spec("accelerate")):
            given["device_map"] = {"": torch.device(self.device)}
        if self.room is not None:
            given |= {"device_map": "auto", "max_memory": dict(self.room)}
        if self.quantization == "int8":
            given["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(_KEPT))
        elif self.quantization == "int4":
            given["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_compute_dtype=self.dtype,
                llm_int8_skip_modules=list(_KEPT),
            )
        return given
