"""Every tunable of grounding: name, default, unit, range and meaning.

The command line and the ROS node declare their options from :func:`tunables`, so each default is stated once. This file is
independent of models: it only defines which values are allowed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Any

DEFAULT_MODEL = "flmm-tabletop"
"""Name of the model that comes with the project; flmm_core/weights/sources.py knows where it is."""
AUTO = "auto"
"""Heads and SAM that belong to the LMM; flmm_core/loading/defaults.py decides."""
ATTENTION = "attention"
"""Heads that need no training: attention heads of the LMM itself."""


@dataclass(frozen=True)
class Tunable:
    """One entry of :class:`GroundingConfig`, as an option parser or a ROS parameter descriptor needs it."""

    name: str
    type: type
    default: Any
    description: str
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()

    def check(self, value: Any) -> None:
        """Refuse a value of the wrong type or out of range.

        Raises:
            ValueError: says what was expected and what was given.
        """
        wrong_type = not isinstance(value, self.type) or (self.type is not bool and isinstance(value, bool))
        if self.type is float and isinstance(value, int) and not isinstance(value, bool):
            wrong_type = False
        if wrong_type:
            raise ValueError(f"{self.name}: expected {self.type.__name__}, got {type(value).__name__} {value!r}")
        if self.choices and value not in self.choices:
            raise ValueError(f"{self.name}: expected one of {', '.join(self.choices)}, got {value!r}")
        if self.minimum is not None and not self.minimum <= value <= self.maximum:  # also refuses NaN
            unit = f" {self.unit}" if self.unit else ""
            raise ValueError(f"{self.name}: expected {self.minimum} to {self.maximum}{unit}, got {value}")


def _tunable(default: Any, description: str, **metadata: Any) -> Any:
    return field(default=default, metadata={"description": description, **metadata})


@dataclass(frozen=True)
class GroundingConfig:
    """The configuration of grounding. The constructor refuses unknown names and, by :meth:`Tunable.check`, invalid values."""

    lmm: str = _tunable(
        DEFAULT_MODEL,
        "LMM: a folder, a Hugging Face name, for instance llava-hf/llava-1.5-7b-hf, or the name of a registered model.",
    )
    heads: str = _tunable(
        AUTO,
        "Grounding heads. auto: those trained on this LMM if they are known, else attention; attention: attention heads of the"
        " LMM, without training; or trained heads: a folder written by this project, a published .pth file, one of these on the"
        " Hub (owner/name, owner/name/file.pth), or the name of a registered model; or a .json file of `flmm calibrate`.",
    )
    sam: str = _tunable(
        AUTO,
        "SAM. auto: the one that belongs to the LMM if it is known, else a stock SAM from the Hub; or a folder of this project"
        " or of transformers' SamModel, Sam2Model or SamHQModel, a segment-anything .pth file, one of these on the Hub"
        " (owner/name, owner/name/file.pth), or the name of a registered model.",
    )
    device: str = _tunable(
        "auto",
        "Device: auto (cuda if there is one; an LMM that the first GPU cannot hold is spread over all), cpu, cuda, cuda:1, ...",
    )
    dtype: str = _tunable(
        "auto",
        "Number format of the LMM; heads and SAM are always float32. auto: bfloat16 on cuda, float32 on the CPU.",
        choices=("auto", "float32", "bfloat16", "float16"),
    )
    quantization: str = _tunable(
        "none",
        "Quantization of the matrices of the LMM's decoder by bitsandbytes: int8 (LLM.int8) or int4 (NF4). The quantized model"
        " gives other answers; it is just as frozen.",
        choices=("none", "int8", "int4"),
    )
    image_tokens: int = _tunable(
        0,
        "Most tokens of an image in the LMM, reached by the settings of its own processor (pixels, tiles); 0: as the checkpoint"
        " has them. Heads want the value that they were trained with, published ones 0.",
        unit="tokens",
        minimum=0,
        maximum=100_000,
    )
    heads_backend: str = _tunable(
        "torch",
        "Runtime of the networks of heads and SAM: PyTorch, ONNX Runtime on the same device, or TensorRT on a GPU, without any"
        " fallback.",
        choices=("torch", "onnx", "tensorrt"),
    )
    heads_precision: str = _tunable("fp32", "Number format of exported networks.", choices=("fp32", "fp16"))
    engines: str = _tunable(
        "", "Folder of networks that `flmm export` wrote; empty: they are exported once and kept in the user's cache folder."
    )
    max_new_tokens: int = _tunable(64, "Longest answer of the LMM.", unit="tokens", minimum=1, maximum=1024)
    max_phrases: int = _tunable(
        32,
        "Most phrases of a command that get a mask, those with the highest scores; the reply names the others.",
        unit="phrases",
        minimum=1,
        maximum=1000,
    )
    selector_threshold: float = _tunable(
        0.5, "Least probability of a token that belongs to a phrase.", unit="probability", minimum=0.0, maximum=1.0
    )
    presence_threshold: float = _tunable(
        0.5,
        "A phrase whose object is present with less than this probability gets an empty mask and is marked as absent.",
        unit="probability",
        minimum=0.0,
        maximum=1.0,
    )
    mask_threshold: float = _tunable(
        0.5, "A pixel belongs to a mask above this probability.", unit="probability", minimum=0.01, maximum=0.99
    )
    refer_prompt: str = _tunable(
        "Please give me a description of the image.", "Question of refer mode, to which the given phrases are the answer."
    )
    reuse_prefix: bool = _tunable(
        True,
        "Cache the LMM's keys and values of the image between commands. Off: the LMM reads the image again for each"
        " command, which is slower, but its logits are bit-identical even in bfloat16.",
    )
    cuda_graphs: bool = _tunable(
        True,
        "On a GPU, decode in static shapes as one CUDA graph for each token, several times faster. A bfloat16 model may choose"
        " another token where its two best scores are a rounding apart; off: it chooses exactly as transformers does.",
    )
    image_cache: int = _tunable(
        512,
        "Memory for cached features of earlier images, which make commands about them cheap; the newest image is always kept.",
        unit="MB",
        minimum=0,
        maximum=1_000_000,
    )
    cpu_threads: int = _tunable(
        0, "Threads of PyTorch on the CPU; 0: PyTorch's default.", unit="threads", minimum=0, maximum=256
    )

    def __post_init__(self) -> None:
        for tunable in tunables():
            tunable.check(getattr(self, tunable.name))


_TYPES = {"str": str, "int": int, "float": float, "bool": bool}


def tunables() -> Iterator[Tunable]:
    """Yield the entries of :class:`GroundingConfig` in the order in which they are defined."""
    for entry in fields(GroundingConfig):
        yield Tunable(name=entry.name, type=_TYPES[str(entry.type)], default=entry.default, **entry.metadata)


def check(name: str, value: Any) -> None:
    """Refuse a value of one entry of :class:`GroundingConfig`; see :meth:`Tunable.check`."""
    next(tunable for tunable in tunables() if tunable.name == name).check(value)
