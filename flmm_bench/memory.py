"""Peak memory of one chat at about 2,900 image tokens; on the CPU in a process for each, as freed memory may stay."""

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
"""Plain generation; with capture; with capture, and keys and values kept for further commands; and the naive path."""


def memory_rows(subject: str, *, layers: int, width: int, tokens: int) -> Iterator[Row]:
    """Extra peak memory of capture against that of the naive path, over plain generation, on the CPU.

    Args:
        subject: the model's name.
        layers: of the random model.
        width: its hidden size.
        tokens: of the answer.
    """
    yield from _rows(subject, {variant: _measured(variant, layers, width, tokens) for variant in VARIANTS})


def cuda_memory_rows(subject: str, lmm: FrozenLmm, images: tuple[np.ndarray, ...], *, tokens: int) -> Iterator[Row]:
    """The same of a loaded model on a GPU.

    Args:
        subject: the model's name.
        lmm: on the GPU.
        images: two, ``[H, W, 3]`` uint8 RGB; the first is for warming up.
        tokens: of the answer.
    """
    peaks = {}
    for variant in VARIANTS:
        talk(lmm, variant, images[0], 2)
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        talk(lmm, variant, images[1], tokens)
        peaks[variant] = torch.cuda.max_memory_allocated() - before
    yield from _rows(subject, peaks)


def talk(lmm: FrozenLmm, variant: str, image: np.ndarray, tokens: int) -> None:
    """One answer of the LMM with what grounding needs of it, in one of :data:`VARIANTS`."""
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
    """Bytes above what the loaded model takes."""
    command = [sys.executable, "-m", "flmm_bench.memory", variant, *map(str, (layers, width, tokens))]
    # Large blocks go back to the system at once, so that the peak is that of what is in use.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"memory of {variant}: expected a measurement, got {run.stderr.strip()[-500:]}")
    return int(run.stdout.split()[-1])


def _main(variant: str, layers: int, width: int, tokens: int) -> None:
    lmm = random_lmm(anyres=True, layers=layers, width=width)
    image, other = random_images(672, 672, 2)
    talk(lmm, variant, other, 2)  # threads and their workspaces
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak is counted from here on
    before = resident_bytes()
    talk(lmm, variant, image, tokens)
    print(peak_resident_bytes() - before)


if __name__ == "__main__":
    _main(sys.argv[1], *map(int, sys.argv[2:]))
