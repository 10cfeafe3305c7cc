"""Measures the effect of each part beyond the published heads on simulated scenes: same data and steps, one change each.

Each variant of the heads is trained by the trainer of ``flmm train heads``, for a part of the shipped heads' schedule, and
grounds the expressions of held-out scenes::

    flmm scenes --split train --seed 0 --count 2400 --out data/train
    flmm scenes --split val --seed 0 --count 60 --out data/val
    flmm scenes --split test --seed 0 --count 60 --out data/test
    flmm train sam --kind sam2 --steps 450 --out runs/sam2
    flmm train sam --kind sam_hq --steps 450 --batch 4 --out runs/sam_hq
    python scripts/measure_ablations.py --cache runs/heads/cache --json docs/ablations.json
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from flmm_cli.shared.records import provenance, write_json
from flmm_core.config import GroundingConfig
from flmm_core.data.formats import open_dataset
from flmm_core.data.samples import REFER_KINDS, Sample, expressions_of
from flmm_core.evaluation.benchmarks import first_of_each
from flmm_core.evaluation.metrics import Figure, Tally, cumulative_iou, share
from flmm_core.evaluation.report import plain_figure
from flmm_core.evaluation.tabletop import coarse_mask
from flmm_core.heads.grounding_heads import trained
from flmm_core.images.masks import Overlap
from flmm_core.pipeline import GroundingPipeline
from flmm_core.requests.callbacks import CoarseMaskCallbacks
from flmm_core.sam.checkpoints import load_sam
from flmm_core.sam.refiner import SamRefiner
from flmm_core.sam.refiner_config import RefinerConfig
from flmm_core.training.heads import train_heads
from flmm_core.training.settings import HeadsSettings
from flmm_tabletop.training.sam import sharpened

SHIPPED = HeadsSettings(
    lmm="flmm-tabletop", sam="flmm-tabletop", batch=8, phrases=3, refined=1, base_channels=32, turns=13, variants=1,
    sam_rate=0.3, val_samples=30, measure_every=10_000,
)  # fmt: skip
"""The settings of the shipped heads, except for their length."""
VARIANTS: dict[str, dict[str, Any]] = {
    "all 36 attention heads": {},
    "the 12 that point best": {"attention_heads": 12},
    "the 6 that point best": {"attention_heads": 6},
    "sinks cut at the quantile 0.98": {"sink_quantile": 0.98},
}
REFINERS: dict[str, dict[str, Any]] = {
    "SAM": {},
    "SAM 2": {"sam": "runs/sam2/sam", "cache": ""},
    "HQ-SAM": {"sam": "runs/sam_hq/sam", "cache": ""},
}
"""The first is that of the variants; embeddings of the others are several times as large and are not cached."""
ROUNDS = 5
"""Rounds of timing, in which the variants run in turn."""


def main() -> None:
    """Train, measure, and write."""
    parser = argparse.ArgumentParser(description="Measures the effect of parts of the heads.")
    parser.add_argument("--cache", default="runs/ablations/cache", help="as of `flmm train heads`")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"), help="folder of the trained heads")
    parser.add_argument("--epochs", type=float, default=0.7, help="of each training; the shipped heads have 5")
    parser.add_argument("--json", type=Path, required=True, help="write the figures to this file")
    args = parser.parse_args()
    args.arguments = []
    samples = list(open_dataset("data/test"))
    shipped = replace(SHIPPED, cache=args.cache, epochs=args.epochs)
    pipelines = {
        name: _trained(args.out / f"heads_{number}", replace(shipped, **changed))
        for number, (name, changed) in enumerate(VARIANTS.items())
    }
    first = next(iter(pipelines.values()))
    refiners = {
        name: _trained(args.out / f"refiner_{number}", replace(shipped, **changed)) if changed else first
        for number, (name, changed) in enumerate(REFINERS.items())
    }
    rows = {name: _masks(pipeline, samples) for name, pipeline in tqdm(pipelines.items(), desc="variants")}
    refined = {name: _refined(pipeline, samples) for name, pipeline in tqdm(refiners.items(), desc="refiners")}
    presence = {str(threshold): _absence(first, samples, threshold) for threshold in (0.0, 0.5)}
    record = {
        **provenance(args, GroundingConfig(), parts=("lmm", "sam")),
        "command": f"python scripts/measure_ablations.py --json {args.json}",
        "epochs": args.epochs,
        "images": len(samples),
        "heads": {name: {figure: plain_figure(value) for figure, value in row.items()} for name, row in rows.items()},
        "unet_share_of_time": _shares({name: _unet(pipeline) for name, pipeline in pipelines.items()}),
        "refiners": {name: {figure: plain_figure(value) for figure, value in row.items()} for name, row in refined.items()},
        "encoder_share_of_time": _shares({name: _encoder(pipeline, samples[0]) for name, pipeline in refiners.items()}),
        "presence": {name: {k: plain_figure(v) for k, v in row.items()} for name, row in presence.items()},
    }
    write_json(args.json, record, "measure_ablations")
    print(f"figures: {args.json}")


def _trained(out: Path, settings: HeadsSettings) -> GroundingPipeline:
    """A pipeline with heads of these settings, which are trained unless they exist."""
    if not (out / "heads").exists():
        train_heads(out, settings, replace(HeadsSettings.LOOP, learning_rate=1e-3), torch.device("cpu"))
    return GroundingPipeline.from_pretrained(sam=settings.sam, heads=out / "heads", presence_threshold=0.0, cpu_threads=1)


def _refined(pipeline: GroundingPipeline, samples: list[Sample]) -> dict[str, Figure]:
    """CIoU of the SAM on imitated coarse masks before the heads are trained with it, and on the heads' masks afterwards."""
    before = SamRefiner(sam=load_sam(pipeline.config.sam), config=RefinerConfig(use_text=False)).eval()
    imitated = cumulative_iou([sharpened(before, sample, number) for number, sample in enumerate(samples)])
    return {"cIoU of imitated masks": imitated, "cIoU, SAM": _masks(pipeline, samples)["cIoU, SAM"]}


def _masks(pipeline: GroundingPipeline, samples: list[Sample]) -> dict[str, Figure]:
    """CIoU of expressions that refer to an object, one for each object, before and after SAM."""
    coarse: list[list[Overlap]] = []
    refined: list[list[Overlap]] = []
    for sample in samples:
        asked = [one for one in _expressions(sample) if one.objects]
        if not asked:
            continue
        callbacks = CoarseMaskCallbacks()
        answer = pipeline.refer(pipeline.encode(sample.image()), [one.words for one in asked], callbacks=callbacks)
        assert callbacks.coarse is not None
        true = [sample.mask(one.objects) for one in asked]
        size = (answer.image_height, answer.image_width)
        coarse.append([Overlap.of(coarse_mask(c, size, 0.5), t) for c, t in zip(callbacks.coarse.logits, true, strict=True)])
        refined.append([Overlap.of(phrase.mask, t) for phrase, t in zip(answer.phrases, true, strict=True)])
    return {"cIoU, U-Net": cumulative_iou(coarse), "cIoU, SAM": cumulative_iou(refined)}


def _absence(pipeline: GroundingPipeline, samples: list[Sample], threshold: float) -> dict[str, Figure]:
    """Accuracy of giving no mask to absent objects, and one to present objects."""
    pipeline.config = replace(pipeline.config, presence_threshold=threshold)
    absent, present = [], []
    for sample in samples:
        asked = _expressions(sample)
        if not asked:
            continue
        answer = pipeline.refer(pipeline.encode(sample.image()), [one.words for one in asked])
        masked = [bool(phrase.mask.any()) for phrase in answer.phrases]
        absent.append(Tally.of(not got for got, one in zip(masked, asked, strict=True) if not one.objects))
        present.append(Tally.of(got for got, one in zip(masked, asked, strict=True) if one.objects))
    return {"no-target accuracy": share(absent), "target accuracy": share(present)}


def _expressions(sample: Sample) -> list[Any]:
    return first_of_each([one for turn in sample.turns if turn.kind in REFER_KINDS for one in expressions_of(turn)])


def _unet(pipeline: GroundingPipeline) -> Callable[[], object]:
    """A function that runs the U-Net on four phrases."""
    head = trained(pipeline.heads, "ablations").mask_head
    maps = torch.rand(4, head.config.in_channels, 16, 16)
    return lambda: head(maps)


def _encoder(pipeline: GroundingPipeline, sample: Sample) -> Callable[[], object]:
    """A function that runs SAM's image encoder."""
    pixels, _ = pipeline.heads.sam.preprocess(sample.image())
    return lambda: pipeline.heads.sam.encoder_network(pixels)


@torch.no_grad()
def _shares(runs: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Time of each as a share of the first one's: the best of rounds in which all run in turn."""
    best = dict.fromkeys(runs, float("inf"))
    for _ in range(ROUNDS):
        for name, run in runs.items():
            began = time.perf_counter()
            for _ in range(10):
                run()
            best[name] = min(best[name], time.perf_counter() - began)
    first = next(iter(best.values()))
    return {name: round(seconds / first, 3) for name, seconds in best.items()}


if __name__ == "__main__":
    main()
