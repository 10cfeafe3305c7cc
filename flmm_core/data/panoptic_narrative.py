"""Panoptic Narrative Grounding (PNG): narratives of COCO images whose nouns are segments of panoptic PNG files.

::

    annotations/png_coco_val2017.json                     narratives: caption, segments {utterance, segment_ids, plural, noun}
    annotations/panoptic_val2017.json                     COCO panoptic: annotations, categories (isthing)
    annotations/panoptic_segmentation/val2017/*.png       segment numbers, red + 256 green + 65536 blue
    images/val2017/*.jpg                                  images
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flmm_core.config import GroundingConfig
from flmm_core.data.json_data import find_words, images_folder, read_json, repeated, unique
from flmm_core.data.masks import mask_rle
from flmm_core.data.samples import DESCRIBE, Dataset, Sample, Span, Turn
from flmm_core.images.files import FORMATS

FORMAT = "png"

_PREFIX = "png_coco_"

Entry = tuple[dict[str, Any], list[dict[str, Any]]]
"""The panoptic annotation of an image, and its narratives, as stored in the files."""


def splits(folder: Path) -> tuple[str, ...]:
    """The splits of a folder; none if it has another layout."""
    files = sorted((folder / "annotations").glob(f"{_PREFIX}*.json"))
    return tuple(path.stem.removeprefix(_PREFIX) for path in files if not path.stem.endswith("_dataloader"))


def read_dataset(folder: Path, split: str) -> Dataset[Entry]:
    """The images of a split, each with a turn for each of its narratives.

    Raises:
        ValueError: files are missing or damaged.
    """
    annotations = folder / "annotations"
    narratives = read_json(annotations / f"{_PREFIX}{split}.json", list)
    panoptic = read_json(annotations / f"panoptic_{split}.json", dict, "annotations", "categories")
    maps = images_folder([annotations / "panoptic_segmentation" / split, annotations / f"panoptic_{split}"], "segments")
    images = images_folder([folder / "images" / split, folder / split], str(folder))
    kinds = {number: category for (number,), category in unique(panoptic["categories"], "id").items()}
    doubled = repeated(int(annotation["image_id"]) for annotation in panoptic["annotations"])
    records = {int(annotation["image_id"]): annotation for annotation in panoptic["annotations"]}
    grouped: dict[int, list[dict[str, Any]]] = {}
    for narrative in narratives:
        grouped.setdefault(int(narrative["image_id"]), []).append(narrative)

    def load(entry: Entry) -> Sample:
        record, about = entry
        if int(record["image_id"]) in doubled or "segments_info" not in record:
            raise ValueError(f"expected one panoptic annotation of image {record['image_id']}, got none or several")
        return _sample(record, about, maps, images, kinds)

    entries = [(records.get(i, {"image_id": i}), about) for i, about in grouped.items()]
    return Dataset(FORMAT, folder, split, entries, load, lambda e: str(images / f"{int(e[0]['image_id']):012d}.jpg"))


def _sample(
    record: dict[str, Any],
    about: list[dict[str, Any]],
    maps: Path,
    images: Path,
    kinds: dict[Any, dict[str, Any]],
) -> Sample:
    numbers = _segment_numbers(maps / record["file_name"])
    stated = unique(record["segments_info"], "id").values()
    of = {int(segment["id"]): kinds[segment["category_id"]] for segment in stated if segment["category_id"] in kinds}
    index: dict[int, int] = {}
    rles: list[dict[str, Any]] = []
    left_out, turns = [], []
    for narrative in about:
        caption, spans, at = narrative["caption"], [], 0
        for segment in narrative["segments"]:
            words = segment["utterance"].strip()
            start, end = find_words(caption, words, at)
            at = max(at, end)
            ids = [int(number) for number in segment["segment_ids"]]
            if not ids:
                continue
            if start < 0:
                left_out.append(f"{words!r}: expected these words in the narrative, got it without")
                continue
            for number in (number for number in ids if number not in index):
                mask = numbers == number
                if mask.any() and number in of:
                    index[number] = len(rles)
                    rles.append(mask_rle(mask))
            known = [number for number in ids if number in index]
            if len(known) < len(ids):
                left_out.append(
                    f"{words!r}: expected its segments with their categories in {record['file_name']}, got it without some"
                )
            if known:
                # As in the benchmark: the first segment decides between thing and stuff, the annotation on plural.
                kind = "thing" if of[known[0]]["isthing"] else "stuff"
                count = "plural" if segment.get("plural") else "singular"
                spans.append(Span(start, end, tuple(index[i] for i in known), (kind, count)))
        turns.append(Turn(DESCRIBE, GroundingConfig.refer_prompt, caption, tuple(spans)))
    path = images / f"{int(record['image_id']):012d}.jpg"
    return Sample(path, tuple(turns), tuple(of[i]["name"] for i in index), tuple(rles), left_out=tuple(left_out))


def _segment_numbers(path: Path) -> np.ndarray:
    """``[H, W]`` numbers of a panoptic PNG file."""
    if not path.is_file():
        raise ValueError(f"expected segments at {path}, got no such file")
    with Image.open(path, formats=FORMATS) as image:
        colours = np.asarray(image.convert("RGB"), dtype=np.uint32)
    return colours[..., 0] + 256 * colours[..., 1] + 65536 * colours[..., 2]
