"""Peak memory of one chat with about 2,900 image tokens. On the CPU each variant runs in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from flmm_bench import naive
from flmm_bench.measuring import Spread
from flmm_bench.rows import QUESTION, Row
from flmm_bench.subjects import random_images, random_lmm
from flmm_core.common.process_memory import peak_resident_bytes, resident_bytes
from flmm_core.lmm.frozen_lmm import FrozenLmm

VARIANTS = ("plain", "captured", "kept", "naive")
"""Plain generation; with recorded attention; also with the image's keys and values cached; the naive path."""


def memory_rows(subject: str, *, layers: int, width: int, tokens: int) -> Iterator[Row]:
    """Peak memory beyond plain generation: that of recorded attention divided by that of the naive path, on the CPU.

    Args:
        subject: the model's name.
        layers: of the random model.
        width: its hidden size.
        tokens: of the answer.
    """
    yield from _rows(subject, {variant: _measured(variant, layers, width, tokens) for variant in VARIANTS})


def cuda_memory_rows(subject: str, lmm: FrozenLmm, images: tuple[np.ndarray, ...], *, tokens: int) -> Iterator[Row]:
    """The figures of :func:`memory_rows` for a loaded model on a GPU.

    Args:
        subject: the model's name.
        lmm: on the GPU.
        images: two, ``[H, W, 3]`` uint8 RGB; the first is for the warm-up.
        tokens: of the answer.
    """
    peaks = {}
    for variant in VARIANTS:
        run_variant(lmm, variant, images[0], 2)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run_variant(lmm, variant, images[1], tokens)
        peaks[variant] = torch.cuda.max_memory_allocated() - before
    yield from _rows(subject, peaks)


def run_variant(lmm: FrozenLmm, variant: str, image: np.ndarray, tokens: int) -> None:
    """Generate one answer of ``tokens`` tokens and what grounding needs of it, in one of :data:`VARIANTS`."""
    if variant in ("captured", "kept"):
        kept = variant == "kept"
        options: Any = {"reuse_prefix": kept, "cuda_graphs": kept}
        one = FrozenLmm(model=lmm.model, tokenizer=lmm.words.tokenizer, family=lmm.family, **options)
        encoded = one.encode_image(Image.fromarray(image))
        layer_weights = torch.ones(3, lmm.shape.layers, device=lmm.device) / lmm.shape.layers
        one.generate(encoded, QUESTION, max_new_tokens=tokens, layer_weights=layer_weights).merged_attention([(0, 2)])
    elif variant == "plain":
        with naive.attention_of(lmm, "sdpa"):
            naive.generate(lmm, image, QUESTION, tokens)
    else:
        with naive.attention_of(lmm, "eager"):
            naive.generate(lmm, image, QUESTION, tokens, **naive.EVERYTHING)


def _rows(subject: str, peaks: Mapping[str, int]) -> Iterator[Row]:
    theirs = peaks["naive"] - peaks["plain"]
    for variant, what, target in (("captured", "capture", 1 / 50), ("kept", "capture and what is kept of an image", None)):
        ratio = max(peaks[variant] - peaks["plain"], 0) / max(theirs, 1)
        megabytes = {f"{name}, MB": peaks[name] / 2**20 for name in ("plain", variant, "naive")}
        what = f"extra peak memory of {what} / of the naive path, 2,928 image tokens"
        yield Row(what, subject, Spread(ratio, ratio, ratio, 1), target, True, megabytes)


def _measured(variant: str, layers: int, width: int, tokens: int) -> int:
    """Peak memory of a variant in bytes, without that of the loaded model."""
    command = [sys.executable, "-m", "flmm_bench.memory", variant, *map(str, (layers, width, tokens))]
    # Freed blocks return to the system at once, so that the peak is that of memory in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"memory of {variant}: expected a measurement, got {run.stderr.strip()[-500:]}")
    return int(run.stdout.split()[-1])


def _main(variant: str, layers: int, width: int, tokens: int) -> None:
    lmm = random_lmm(anyres=True, layers=layers, width=width)
    image, other = random_images(672, 672, 2)
    run_variant(lmm, variant, other, 2)  # warm-up: threads and their workspaces
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # resets the peak
    before = resident_bytes()
    run_variant(lmm, variant, image, tokens)
    print(peak_resident_bytes() - before)


if __name__ == "__main__":
    _main(sys.argv[1], *map(int, sys.argv[2:]))
