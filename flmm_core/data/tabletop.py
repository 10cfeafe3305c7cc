"""This project's own layout, written by ``flmm scenes`` or by any other program.

::

    images/000000.png   images
    annotations.json    COCO: images, annotations (compressed RLE masks, attributes.color), categories
    questions.json      for each image its turns: kind, question, answer, spans {start, end, annotation_ids}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flmm_core.data.json_data import read_json
from flmm_core.data.samples import Dataset, Sample, Span, Turn

DATASET_FILES = ("questions.json", "annotations.json")
"""Files that a data-set folder must hold beside its images."""

FORMAT = "tabletop"

Entry = tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]
"""An image, its turns and its annotations, as stored in the files."""


def splits(folder: Path) -> tuple[str, ...]:
    """One split without a name; none if the folder has another layout."""
    return ("",) if all((folder / name).is_file() for name in DATASET_FILES) else ()


def read_dataset(folder: Path, split: str = "") -> Dataset[Entry]:
    """The images of a data set in order.

    Raises:
        ValueError: the folder holds no data set.
    """
    for name in DATASET_FILES:
        if not (folder / name).is_file():
            raise ValueError(f"expected a data set of `flmm scenes` at {folder}, got a folder without {name}")
    coco = read_json(folder / "annotations.json", dict, "images", "annotations", "categories")
    turns = {entry["image_id"]: entry["turns"] for entry in read_json(folder / "questions.json", list)}
    kinds = {category["id"]: category["name"] for category in coco["categories"]}
    objects: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in coco["images"]}
    for annotation in coco["annotations"]:
        objects[annotation["image_id"]].append(annotation)

    def load(entry: Entry) -> Sample:
        image, asked, annotations = entry
        index = {annotation["id"]: i for i, annotation in enumerate(annotations)}
        return Sample(
            path=folder / "images" / image["file_name"],
            turns=tuple(_turn(turn, index) for turn in asked),
            names=tuple(f"{a['attributes']['color']} {kinds[a['category_id']]}" for a in annotations),
            rles=tuple(a["segmentation"] for a in annotations),
        )

    entries = [(image, turns.get(image["id"], []), objects[image["id"]]) for image in coco["images"]]
    return Dataset(FORMAT, folder, split, entries, load, lambda entry: str(folder / "images" / str(entry[0].get("file_name"))))


def _turn(turn: dict[str, Any], index: dict[int, int]) -> Turn:
    spans = tuple(Span(s["start"], s["end"], tuple(index[i] for i in s["annotation_ids"])) for s in turn["spans"])
    return Turn(turn["kind"], turn["question"], turn["answer"], spans)
