"""Runs the benchmark: every row for every model."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import onnxruntime
import torch

from flmm_bench.findings import Findings, Rates
from flmm_bench.memory import cuda_memory_rows, memory_rows
from flmm_bench.report import rates_of
from flmm_bench.rows import (
    ONNX,
    TENSORRT,
    Backend,
    Row,
    capture_rows,
    command_rows,
    engine_rows,
    exported,
    mask_rows,
    refer_rows,
)
from flmm_bench.subjects import loaded_pipeline, random_images, random_lmm, random_pipeline, random_sam, shipped_pipeline
from flmm_core.engines.attach import attach
from flmm_core.pipeline import GroundingPipeline


@dataclass(frozen=True)
class Random:
    """A random LMM and its SAM."""

    anyres: bool
    layers: int
    vision_layers: int
    sam: str | None
    """Kind of SAM in :data:`~flmm_bench.subjects.SAMS`; None for the shipped one."""


@dataclass(frozen=True)
class Plan:
    """Random models for a kind of device."""

    models: tuple[Random, ...]
    dtype: torch.dtype
    tokens: int
    """Tokens of an answer of the random models."""


PLANS = {
    "cpu": Plan((Random(False, 2, 4, "ViT-B"), Random(True, 1, 4, "ViT-L")), torch.float32, 24),
    "cuda": Plan((Random(False, 32, 24, "ViT-L"), Random(True, 32, 24, "ViT-L")), torch.bfloat16, 64),
}
SMALL = Plan((Random(False, 2, 2, None), Random(True, 1, 2, None)), torch.float32, 24)


def measure(
    *, device: str, rounds: int, small: bool = False, parts: tuple[str, str, str] | None = None, dtype: str = "float32"
) -> Findings:
    """Run the benchmark.

    Args:
        device: cpu or cuda.
        rounds: of each measurement; those on random models run a third of them.
        small: use narrow random models and the shipped SAM, to try the benchmark.
        parts: LMM, heads and SAM to measure instead of all others.
        dtype: number format of the LMM of ``parts``.
    """
    logging.getLogger("transformers").setLevel(logging.ERROR)
    plan = SMALL if small else PLANS[device]
    found = Findings(rates_of(device, plan.dtype))
    if parts:
        pipeline = loaded_pipeline(*parts, device=device, dtype=dtype)
        images = random_images(480, 640, rounds + 2)
        _subject(found, parts[0], pipeline, images, tokens=64, rounds=rounds)
        return found
    shipped = shipped_pipeline(device=device)
    images = random_images(240, 320, rounds + 2)
    _subject(found, "flmm-tabletop", shipped, images, tokens=64, rounds=2 * rounds)
    few, width = max(2, rounds // 3), 256 if small else 4096
    where: Any = {"device": device, "dtype": plan.dtype}
    for model in plan.models:
        shape: Any = {"layers": model.layers, "width": width, "vision_layers": model.vision_layers}
        lmm = random_lmm(anyres=model.anyres, **shape, **where)
        sam = random_sam(model.sam) if model.sam else shipped.heads.sam.model
        kind = "anyres LLaVA" if model.anyres else "LLaVA"
        name = f"{kind}, {model.layers} layers of {width}, SAM {model.sam or 'shipped'}"
        pipeline = random_pipeline(lmm, sam)
        size = 672 if model.anyres else 336
        images = random_images(size, size, few)
        tokens = 2928 if model.anyres else 576
        rows = _subject(found, name, pipeline, images, tokens=plan.tokens, rounds=few)
        found.floors |= dict(_floors(name, rows, found.rates, model.layers, width, tokens, plan))
        if model.anyres and device == "cuda":
            found.rows += cuda_memory_rows(name, lmm, images[:2], tokens=4)
        del lmm, pipeline
    if device == "cpu":
        found.rows += memory_rows(f"anyres LLaVA, 1 layers of {width}", layers=1, width=width, tokens=4)
    return found


def _subject(
    found: Findings, name: str, pipeline: GroundingPipeline, images: tuple[np.ndarray, ...], *, tokens: int, rounds: int
) -> list[Row]:
    """All rows of one model, which are also added to ``found``. The commands run with the fastest heads available."""
    rows = [*capture_rows(name, pipeline, images[0], tokens=tokens, rounds=rounds)]
    device = pipeline.lmm.device.type
    shipped = name == "flmm-tabletop"
    with ExitStack() as stack:
        engines = []
        for backend in _backends(found, device, name):
            engine = stack.enter_context(exported(pipeline.heads, backend))
            engines.append((backend, engine))
            rows += engine_rows(name, pipeline.heads, engine, backend, rounds=max(2, rounds // 2))
        if shipped:
            rows += mask_rows(name, pipeline, images[:3], engines)
        heads = "PyTorch"
        for backend, engine in engines[-1:]:
            heads = backend.name
            attach(pipeline.heads, engine)
        pipeline.images.forget()
        rows += command_rows(name, pipeline, images, tokens=tokens, heads=heads)
        rows += refer_rows(name, pipeline, images[0], rounds=rounds, heads=heads)
    found.rows += rows
    return rows


def _backends(found: Findings, device: str, name: str) -> Iterator[Backend]:
    """Backends that can run the heads on a device besides PyTorch, the fastest last; missing ones are recorded."""
    provider = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[device]
    if provider in onnxruntime.get_available_providers():
        yield ONNX
    else:
        found.missing.append(f"ONNX heads, {name}: ONNX Runtime has no {provider} here")
    if device == "cuda" and find_spec("tensorrt"):
        yield TENSORRT
    elif device == "cuda":
        found.missing.append(f"TensorRT heads, {name}: TensorRT is not installed here")


def _floors(
    name: str, rows: list[Row], rates: Rates, layers: int, width: int, tokens: int, plan: Plan
) -> Iterator[tuple[str, str]]:
    """Lower bounds of times, given the peak rates of the machine, beside the measured times, in words."""
    weights = layers * (4 * width**2 + 3 * width * (width * 11008 // 4096))
    least = {
        "prefill": 2 * weights * tokens / rates.flops,
        "decoding": (plan.tokens - 1) * plan.dtype.itemsize * weights / rates.bytes,
    }
    for row in rows:
        for part, seconds in least.items():
            if row.what.startswith(f"chat with capture / plain: {part}"):
                took = row.seconds["captured"]
                rest = "vision tower, attention and words" if part == "prefill" else "attention, words and Python"
                words = f"the decoder's matrices alone need {seconds:.3g} s, it took {took:.3g} s ({took / seconds:.1f} times)"
                yield f"{part}, {name}", f"{words}; the rest is {rest}"
        if row.what.startswith("naive / ours") and "first" in row.what:
            slow, plain = row.seconds["naive"], row.seconds["plain generation"]
            words = f"plain generation alone takes {plain:.3g} s of the naive path's {slow:.3g} s: grounding for nothing would"
            yield f"first command, {name}", f"{words} be a ratio of {slow / plain:.2f}"
