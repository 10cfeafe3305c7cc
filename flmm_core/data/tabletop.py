"""This project's own layout, written by ``flmm scenes`` or by any other program.

::

    images/000000.png   images
    annotations.json    COCO: images, annotations (polygons or RLE masks, attributes.color if there is one), categories
    questions.json      for each image its turns: kind, question, answer, spans {start, end, annotation_ids}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flmm_core.data.broken import file_errors
from flmm_core.data.json_data import read_json, repeated, require_unique, unique
from flmm_core.data.masks import segmentation_rle
from flmm_core.data.samples import DETAIL, REASON, Dataset, Sample, Span, Turn

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
    asked = read_json(folder / "questions.json", list)
    with file_errors(folder):
        entries = _entries(coco, asked)
        kinds = unique(coco["categories"], "id")
        doubled = repeated(image["id"] for image in coco["images"])

    def load(entry: Entry) -> Sample:
        require_unique(entry[0], doubled)
        return _sample(entry, kinds, folder)

    return Dataset(FORMAT, folder, split, entries, load, lambda entry: str(folder / "images" / str(entry[0].get("file_name"))))


def _entries(coco: dict[str, Any], asked: list[dict[str, Any]]) -> list[Entry]:
    turns: dict[Any, list[dict[str, Any]]] = {}
    for about in asked:
        turns.setdefault(about["image_id"], []).extend(about["turns"])
    objects: dict[Any, list[dict[str, Any]]] = {}
    for annotation in coco["annotations"]:
        objects.setdefault(annotation["image_id"], []).append(annotation)
    return [(image, turns.get(image["id"], []), objects.get(image["id"], [])) for image in coco["images"]]


def _sample(entry: Entry, kinds: dict[tuple[Any, ...], dict[str, Any]], folder: Path) -> Sample:
    image, asked, annotations = entry
    index: dict[Any, int] = {}
    names: list[str] = []
    rles: list[dict[str, Any]] = []
    left_out: list[str] = []
    doubled = repeated(annotation["id"] for annotation in annotations)
    for annotation in annotations:
        number = annotation["id"]
        try:
            if number in doubled:
                raise ValueError("expected an id of its own, got several annotations with it")
            if (kind := kinds.get((annotation["category_id"],))) is None:
                raise ValueError(f"expected one category {annotation['category_id']!r:.40}, got none or several")
            rle = segmentation_rle(annotation["segmentation"], image["height"], image["width"])
            names.append(f"{annotation.get('attributes', {}).get('color', '')} {kind['name']}".strip())
        except ValueError as error:
            left_out.append(f"annotation {number}: {error}")
            continue
        index[number] = len(rles)
        rles.append(rle)
    turns = tuple(_turn(turn, index, left_out) for turn in asked)
    return Sample(folder / "images" / image["file_name"], turns, tuple(names), tuple(rles), left_out=tuple(left_out))


def _turn(turn: dict[str, Any], index: dict[Any, int], left_out: list[str]) -> Turn:
    """A turn without the spans that name an object that was left out, or no characters of the answer."""
    if not all(isinstance(turn[name], str) for name in ("kind", "question", "answer")):
        raise ValueError("expected kind, question and answer of each turn as text, got something else")
    spans = []
    for span in turn["spans"]:
        start, end, ids = span["start"], span["end"], span["annotation_ids"]
        if not 0 <= start < end <= len(turn["answer"]) and turn["kind"] not in (REASON, DETAIL):
            left_out.append(f"{turn['answer']!r:.60}: expected characters of the answer, got {start} to {end}")
        elif missing := [i for i in ids if i not in index]:
            words = turn["answer"][start:end]
            left_out.append(f"{words!r:.60}: expected annotation {missing[0]!r:.40}, got none that can be used")
        else:
            spans.append(Span(start, end, tuple(index[i] for i in ids)))
    return Turn(turn["kind"], turn["question"], turn["answer"], tuple(spans))
