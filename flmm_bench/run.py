"""The whole benchmark: every row on every model that it is about."""

from __future__ import annotations

import logging

from flmm_bench.memory import memory_rows
from flmm_bench.report import speed
from flmm_bench.rows import Row, capture_rows, command_rows, engine_rows, mask_rows, refer_rows
from flmm_bench.subjects import random_images, random_lmm, random_pipeline, random_sam, shipped_pipeline

TOKENS = 24
"""Of answers of random models."""


def measure(*, rounds: int, small: bool) -> tuple[list[Row], dict[str, str], dict[str, float]]:
    """Run it.

    Args:
        rounds: of each measurement; commands on random models run a third of them.
        small: narrow random models and the shipped SAM, to try the way.

    Returns:
        Rows, floors in words, and the machine's rates.
    """
    logging.getLogger("transformers").setLevel(logging.ERROR)
    rates = speed()
    few = max(2, rounds // 3)
    width, kinds = (256, (None, None)) if small else (4096, ("ViT-B", "ViT-L"))
    shipped = shipped_pipeline()
    images = random_images(240, 320, rounds + 2)
    rows = [
        *capture_rows("flmm-tabletop", shipped, images[0], tokens=64, rounds=2 * rounds),
        *command_rows("flmm-tabletop", shipped, images, tokens=64),
        *refer_rows("flmm-tabletop", shipped, images[0], rounds=2 * rounds),
        *engine_rows("flmm-tabletop", shipped.heads, rounds=rounds),
        *mask_rows(images[:3]),
    ]
    floors: dict[str, str] = {}
    for anyres, layers, kind in ((False, 2, kinds[0]), (True, 1, kinds[1])):
        lmm = random_lmm(anyres=anyres, layers=layers, width=width)
        sam = random_sam(kind) if kind else shipped.heads.sam.model
        name = f"{'anyres' if anyres else 'LLaVA'}, {layers} layers of {width}, SAM {kind or 'shipped'}"
        pipeline = random_pipeline(lmm, sam)
        size = 672 if anyres else 336
        images = random_images(size, size, few)
        found = [*capture_rows(name, pipeline, images[0], tokens=TOKENS, rounds=few)]
        found += command_rows(name, pipeline, images, tokens=TOKENS)
        if not anyres:
            found += refer_rows(name, pipeline, images[0], rounds=few)
        found += engine_rows(name, pipeline.heads, rounds=few)
        floors |= _floors(name, found, rates, layers=layers, width=width, tokens=2928 if anyres else 576)
        rows += found
        del lmm, pipeline
    rows += memory_rows(layers=1, width=width, tokens=4)
    return rows, floors, rates


def _floors(name: str, rows: list[Row], rates: dict[str, float], *, layers: int, width: int, tokens: int) -> dict[str, str]:
    """How far prefill and decoding with capture are from what the machine could do at best."""
    weights = layers * (4 * width**2 + 3 * width * (width * 11008 // 4096))
    least = {
        "prefill": 2 * weights * tokens / rates["flops"],
        "decoding": (TOKENS - 1) * 4 * weights / rates["bytes"],
    }
    floors = {}
    for row in rows:
        for part, seconds in least.items():
            if row.what.startswith(f"chat with capture / plain: {part}"):
                took = row.seconds["captured"]
                rest = "vision tower, attention and words" if part == "prefill" else "attention, words and Python"
                floors[f"{part}, {name}"] = (
                    f"the decoder's matrices alone need {seconds:.2f} s, it took {took:.2f} s ({took / seconds:.1f} times); the"
                    f" rest is {rest}"
                )
    return floors
