"""Measures heads that need no training on simulated scenes, beside trained heads and boxes, and what their parts are worth::

    flmm scenes --split test --seed 0 --count 60 --out data/test
    flmm scenes --split calibration --seed 0 --count 30 --out data/calibration
    python scripts/measure_training_free.py --json docs/training_free.json

All ways share the shipped LMM and the images. No figure is of data that a choice was made on.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from training_free_ablations import Found, ablations, refer_turns

from flmm_cli.shared.records import provenance, write_json
from flmm_core.config import GroundingConfig
from flmm_core.data.formats import open_dataset
from flmm_core.data.samples import NO_ANSWERS, Sample, Turn
from flmm_core.evaluation.baseline import BoxPrompter, box_of
from flmm_core.evaluation.matching import is_right, match_phrases, overlaps
from flmm_core.evaluation.tabletop import is_relational
from flmm_core.heads.attention_heads import HEADS, IMITATED_PROMPTS, AttentionHeads
from flmm_core.images.masks import Overlap
from flmm_core.loading.checkpoints import fingerprints
from flmm_core.loading.head_choices import HeadChoice
from flmm_core.pipeline import GroundingPipeline
from flmm_core.requests.image_handle import ImageHandle
from flmm_core.sam.checkpoints import load_sam
from flmm_core.sam.refiner import SamRefiner
from flmm_core.training.calibration import CalibrationSettings, calibrate
from flmm_core.types import GroundedAnswer

QUESTIONS = 5
"""Of each image."""
THRESHOLD = 0.5
"""Of presence, where masks of absent objects count."""


Masks = tuple[list[np.ndarray], list[float]]
MasksOf = Callable[[ImageHandle, Sequence[str], Sequence[Any]], Masks]
"""Masks ``[H, W]`` bool and presence of phrases about an image; the truth of each is given for upper bounds."""


def main() -> None:
    """Measure, and write."""
    parser = argparse.ArgumentParser(description="Measures heads that need no training.")
    parser.add_argument("--data", default="data/test")
    parser.add_argument("--calibration", default="data/calibration")
    parser.add_argument("--limit", type=int, default=20, help="images (default: %(default)s)")
    parser.add_argument("--json", type=Path, required=True, help="write the figures to this file")
    args = parser.parse_args()
    args.arguments = []
    torch.set_num_threads(1)
    samples = list(open_dataset(args.data))[: args.limit]
    trained = GroundingPipeline.from_config(GroundingConfig(presence_threshold=0.0))
    choices = {one: _choice(trained, args.calibration, one, 8) for one in ("contrast", "entropy")}
    best = _choice(trained, args.calibration, "contrast", HEADS)
    ways = {
        "trained heads": trained,
        "without training, calibrated": _attention(trained, best),
        "without training, first answer": _attention(trained, None),
    }
    rows = {name: _pipeline_row(pipeline, samples) for name, pipeline in ways.items()}
    prompter = BoxPrompter(trained, load_sam(trained.config.sam))
    rows["boxes that the LMM writes, SAM"] = _box_row(trained, samples, partial(_said_boxes, prompter))
    rows["true boxes, SAM"] = _box_row(trained, samples, partial(_true_boxes, prompter))
    record = {
        **provenance(args, GroundingConfig()),
        "command": f"python scripts/measure_training_free.py --json {args.json}",
        "images": len(samples),
        "ways": {name: found.record() for name, found in rows.items()},
        "calibration": best.record(),
        "choices": {name: choice.record() for name, choice in choices.items()},
        "ablations": {name: found.record() for name, found in ablations(trained, samples, choices).items()},
    }
    write_json(args.json, record, "measure_training_free")
    print(f"figures: {args.json}")


def _choice(pipeline: GroundingPipeline, data: str, criterion: str, heads: int) -> HeadChoice:
    readers = [sample.image for sample in open_dataset(data)]
    settings = CalibrationSettings(criterion=criterion, heads=heads)
    return calibrate(
        pipeline.lmm, readers, settings, name="flmm-tabletop", fingerprint=fingerprints(lmm="flmm-tabletop")["lmm"]
    )


def _attention(pipeline: GroundingPipeline, choice: HeadChoice | None) -> GroundingPipeline:
    """The same LMM with attention heads: those of a choice, or none to choose for each phrase."""
    heads = AttentionHeads(
        sam=SamRefiner(sam=load_sam(pipeline.config.sam), config=IMITATED_PROMPTS),
        layers=pipeline.lmm.shape.layers,
        channels=[head.channel for head in choice.heads] if choice else (),
        presence=choice.presence.score if choice and choice.presence else None,
    )
    return GroundingPipeline(lmm=pipeline.lmm, heads=heads.eval(), config=pipeline.config)


def _chat_turns(sample: Sample) -> list[Turn]:
    """Questions of different kinds that have a right answer, at most :data:`QUESTIONS`."""
    firsts = {turn.kind: turn for turn in reversed(sample.turns) if turn.kind not in NO_ANSWERS}
    return list(firsts.values())[:QUESTIONS]


def _add(found: Found, sample: Sample, turn: Turn, masks: Sequence[np.ndarray], presence: Sequence[float]) -> None:
    """Add the phrases of a turn of refer mode to the lists of the current image."""
    for words, span, mask, there in zip(turn.phrases, turn.spans, masks, presence, strict=True):
        kept = mask if there >= THRESHOLD else None
        if span.objects:
            true = sample.mask(span.objects)
            found.refer[-1].append(Overlap.of(mask, true))
            found.all[-1].append(Overlap.of(kept, true))
            found.present.append(there)
            if not is_relational(words):
                found.names[-1].append(found.refer[-1][-1])
        else:
            found.all[-1].append(Overlap.of(kept, None))
            found.absent.append(there)


def _add_answer(found: Found, sample: Sample, turn: Turn, answer: GroundedAnswer, masks: Sequence[np.ndarray]) -> None:
    """Add a right answer to the lists of the current image: all its masks, and those of the true names that have a phrase."""
    pairs = match_phrases(answer.phrases, turn, right=True)
    named = [(p, s) for p, s in pairs if p is not None and s is not None and turn.spans[s].objects]
    found.chat[-1] += overlaps(pairs, lambda i: masks[i], turn, sample.mask)
    found.chat_names[-1] += overlaps(named, lambda i: masks[i], turn, sample.mask)


def _pipeline_row(pipeline: GroundingPipeline, samples: Sequence[Sample]) -> Found:
    found = Found()
    for sample in tqdm(samples, desc="heads", unit="image"):
        image = pipeline.encode(sample.image())
        image.lmm(), image.start_sam().result()
        for results in (found.refer, found.names, found.all, found.chat, found.chat_names):
            results.append([])
        pipeline.set_thresholds(presence_threshold=0.0)  # all masks, and the presence of each
        for turn in refer_turns(sample):
            began = time.perf_counter()
            answer = pipeline.refer(image, turn.phrases)
            found.seconds += [(time.perf_counter() - began) / len(turn.phrases)]
            _add(found, sample, turn, [p.mask for p in answer.phrases], [p.presence for p in answer.phrases])
        pipeline.set_thresholds(presence_threshold=THRESHOLD)
        for turn in _chat_turns(sample):
            answer = pipeline.chat(image, turn.question)
            if is_right(answer.text, turn.answer):
                _add_answer(found, sample, turn, answer, [phrase.mask for phrase in answer.phrases])
    return found


def _box_row(pipeline: GroundingPipeline, samples: Sequence[Sample], masks_of: MasksOf) -> Found:
    """Boxes for the phrases of refer mode, and for those of the right answers of the trained model."""
    found = Found()
    for sample in tqdm(samples, desc="boxes", unit="image"):
        image = pipeline.encode(sample.image())
        image.lmm(), image.start_sam().result()
        for results in (found.refer, found.names, found.all, found.chat, found.chat_names):
            results.append([])
        for turn in refer_turns(sample):
            began = time.perf_counter()
            truths = [sample.mask(span.objects) if span.objects else None for span in turn.spans]
            masks, presence = masks_of(image, turn.phrases, truths)
            found.seconds += [(time.perf_counter() - began) / len(turn.phrases)]
            _add(found, sample, turn, masks, presence)
        for turn in _chat_turns(sample):
            answer = pipeline.chat(image, turn.question)
            if not is_right(answer.text, turn.answer):
                continue
            pairs = match_phrases(answer.phrases, turn, right=True)
            spans: dict[int, Any] = {p: turn.spans[s] for p, s in pairs if p is not None and s is not None}
            truths = [
                sample.mask(spans[i].objects) if i in spans and spans[i].objects else None for i in range(len(answer.phrases))
            ]
            masks, _ = masks_of(image, [phrase.text for phrase in answer.phrases], truths)
            _add_answer(found, sample, turn, answer, masks)
    return found


def _said_boxes(prompter: BoxPrompter, image: ImageHandle, words: Sequence[str], _: Any) -> Masks:
    masks = [prompter.point(image, one) for one in words]
    return masks, [float(mask.any()) for mask in masks]


def _true_boxes(prompter: BoxPrompter, image: ImageHandle, _: Any, truths: Sequence[Any]) -> Masks:
    boxes: list[list[Any]] = [[] if true is None else [box_of(true)] for true in truths]
    return [prompter.masks(image, one) for one in boxes], [float(bool(one)) for one in boxes]


if __name__ == "__main__":
    main()
