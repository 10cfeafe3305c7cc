"""Writes data sets of simulated scenes in the layout of :mod:`flmm_core.data.tabletop`.

Beyond that layout each COCO image carries its scene's ``seed``, ``intrinsics`` and ``camera_pose``, and each annotation the
object's ``position`` in the table frame and its place in the view frame.
Splits of the same seed never share a scene: the split's name is part of every scene's seed.
"""

from __future__ import annotations

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask
from tqdm import tqdm

from flmm_core.common.output_files import write_text
from flmm_core.data.masks import mask_rle
from flmm_core.data.samples import Turn
from flmm_sim.foreign_words import HELD_OUT_UNKNOWN_WORDS, UNKNOWN_WORDS
from flmm_sim.language import TURNS, questions
from flmm_sim.renderer import TabletopRenderer
from flmm_sim.scene import KINDS, Scene, scene_seed

LEARNING_SPLITS = ("train", "val")
"""Splits for training and tuning; all others ask for unknown objects by words that these never use."""

CHUNK = 100
"""Scenes of one job; an interrupted run continues with the first unfinished job."""


def write_dataset(out: Path, *, split: str, seed: int, count: int, workers: int = 2) -> None:
    """Render ``count`` scenes into ``out`` (see the module's docstring for the layout); continues an interrupted run.

    Raises:
        ValueError: the folder holds scenes of another split, seed or number of turns.
    """
    if count < 1:
        raise ValueError(f"expected a count of at least 1, got {count}")
    (out / "images").mkdir(parents=True, exist_ok=True)
    parts = out / "parts"
    parts.mkdir(exist_ok=True)
    _require_same(parts / "settings.json", {"split": split, "seed": seed, "turns": dict(TURNS)})
    jobs = [range(start, min(start + CHUNK, count)) for start in range(0, count, CHUNK)]
    missing = [job for job in jobs if not _part(parts, job).exists()]
    with (
        tqdm(total=count, initial=count - sum(map(len, missing)), unit="scene", desc=f"scenes {split}") as bar,
        # Forked processes would hang if this one had rendered before, as OpenGL's threads are not forked.
        ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        futures = {pool.submit(_write_chunk, out, split, seed, job): job for job in missing}
        for future in as_completed(futures):
            future.result()
            bar.update(len(futures[future]))
    _merge(out, [json.loads(line) for job in jobs for line in _part(parts, job).read_text().splitlines()])


def _require_same(path: Path, settings: dict[str, Any]) -> None:
    """Refuse to mix scenes of different settings in one folder."""
    if path.exists() and (before := json.loads(path.read_text())) != settings:
        raise ValueError(f"{path.parent.parent}: expected a new folder or scenes of {settings}, got scenes of {before}")
    write_text(path, json.dumps(settings))


def _part(parts: Path, job: range) -> Path:
    return parts / f"{job.start:06d}-{job.stop:06d}.jsonl"


def _write_chunk(out: Path, split: str, seed: int, job: range) -> None:
    words = UNKNOWN_WORDS if split in LEARNING_SPLITS else HELD_OUT_UNKNOWN_WORDS
    lines = []
    with TabletopRenderer() as renderer:
        for index in job:
            scene = renderer.sample(scene_seed(split, seed, index))
            rng = np.random.default_rng(scene_seed(split + " questions", seed, index))
            turns = questions(scene, rng, unknown_words=words)
            path = out / "images" / f"{index:06d}.png"
            if not cv2.imwrite(str(path), cv2.cvtColor(scene.image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 1]):
                raise OSError(f"{path}: cannot be written")
            lines.append(json.dumps(_record(scene, turns, index, scene_seed(split, seed, index))))
    write_text(_part(out / "parts", job), "\n".join(lines) + "\n")


def _record(scene: Scene, turns: list[Turn], index: int, seed: int) -> dict[str, Any]:
    annotations = []
    for item in scene.objects:
        rle = mask_rle(item.mask)
        annotations.append(
            {
                "category_id": KINDS.index(item.kind) + 1,
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                "bbox": coco_mask.toBbox(rle).tolist(),
                "area": int(item.mask.sum()),
                "iscrowd": 0,
                "attributes": {"color": item.color, "position": item.position, "right": item.right, "away": item.away},
            }
        )
    height, width = scene.image.shape[:2]
    image = {"id": index, "file_name": f"{index:06d}.png", "height": height, "width": width, "seed": seed}
    image |= {"intrinsics": scene.intrinsics.tolist(), "camera_pose": scene.camera_pose.tolist()}
    records = [
        {
            "kind": turn.kind,
            "question": turn.question,
            "answer": turn.answer,
            "spans": [{"start": s.start, "end": s.end, "objects": s.objects} for s in turn.spans],
        }
        for turn in turns
    ]
    return {"image": image, "annotations": annotations, "turns": records}


def _merge(out: Path, records: list[dict[str, Any]]) -> None:
    coco: dict[str, Any] = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i + 1, "name": k} for i, k in enumerate(KINDS)],
    }
    asked = []
    for record in records:
        first = len(coco["annotations"])
        coco["images"].append(record["image"])
        for annotation in record["annotations"]:
            coco["annotations"].append({"id": len(coco["annotations"]), "image_id": record["image"]["id"], **annotation})
        for turn in record["turns"]:
            for span in turn["spans"]:
                span["annotation_ids"] = [first + i for i in span.pop("objects")]
        asked.append({"image_id": record["image"]["id"], "turns": record["turns"]})
    write_text(out / "annotations.json", json.dumps(coco))
    write_text(out / "questions.json", json.dumps(asked))
