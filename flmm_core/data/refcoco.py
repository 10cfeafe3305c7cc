"""RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO: expressions for objects of COCO images.

Layout as published, in one folder for each data set::

    instances.json               COCO: images, annotations (polygons or RLE), categories
    refs(unc).json               expressions: from refs(unc).p by `flmm convert-data`
    grefs(unc).json              gRefCOCO: several objects or none for an expression
    images, train2014, ../images/mscoco/images/train2014, ...: the images

RefCOCOg has refs(umd) and refs(google); with several such files a split is named "umd/val". The JSON release of MDETR
is read, too; its masks are those of COCO::

    finetune_refcoco_val.json, finetune_refcoco+_train.json, ...: an image for each expression, with its numbers in COCO
    instances_train2014.json     of COCO, here or in ../annotations
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from flmm_core.data.json_data import images_folder, read_json, unique
from flmm_core.data.masks import segmentation_rle
from flmm_core.data.samples import Dataset, Expression, Sample, refer_turn

FORMAT = "refcoco"

_REFS = re.compile(r"g?refs\((\w+)\)\.json")
_PICKLES = "*refs(*).p"
_MDETR = re.compile(r"finetune_(refcoco[+g]?)_(\w+)\.json")
_COCO = "instances_train2014.json"
_NEEDED = ("split", "image_id", "ann_id", "sentences")
"""Entries of an expression; MDETR's have no split."""

Entry = tuple[dict[str, Any], list[dict[str, Any]]]
"""An image, and the expressions about it, as stored in the files."""


def splits(folder: Path) -> tuple[str, ...]:
    """The splits of a folder in order of their appearance; none if it has another layout.

    Raises:
        ValueError: its expressions are still pickles, or it has MDETR's files without the masks.
    """
    files = _reference_files(folder)
    if not files and (mdetr := _mdetr_files(folder)):
        if _instances(folder) is None:
            raise ValueError(f"{folder}: expected {_COCO} of COCO in it or beside it, which has the masks, got none")
        return tuple(mdetr)
    if not (folder / "instances.json").is_file():
        return ()
    if not files:
        if any(folder.glob(_PICKLES)):
            raise ValueError(f"{folder}: expected refs as JSON, got pickles; convert them once: flmm convert-data {folder}")
        return ()
    names = []
    for by, path in files.items():
        stated = dict.fromkeys(ref["split"] for ref in read_json(path, list) if isinstance(ref, dict) and "split" in ref)
        if not stated:
            raise ValueError(f"{path}: expected a split of each expression, got none")
        names += [f"{by}/{split}" if len(files) > 1 else str(split) for split in stated]
    return tuple(names)


def _reference_files(folder: Path) -> dict[str, Path]:
    return {match[1]: path for path in sorted(folder.iterdir()) if (match := _REFS.fullmatch(path.name))}


def _mdetr_files(folder: Path) -> dict[str, Path]:
    """Files of MDETR by the names of their splits; with several data sets, these come first in the name."""
    found = [(match[1], match[2], path) for path in sorted(folder.iterdir()) if (match := _MDETR.fullmatch(path.name))]
    several = len({name for name, _, _ in found}) > 1
    return {f"{name}/{split}" if several else split: path for name, split, path in found}


def _instances(folder: Path) -> Path | None:
    """Path of the file with the masks; None if there is none."""
    places = (folder / "instances.json", folder / _COCO, folder.parent / "annotations" / _COCO)
    return next((path for path in places if path.is_file()), None)


def _published_refs(files: dict[str, Path], split: str) -> list[dict[str, Any]]:
    """Expressions of a split, and those that do not say theirs, which are reported when they are read."""
    by, _, name = split.rpartition("/")
    refs = read_json(files[by] if by else next(iter(files.values())), list)
    return [ref for ref in refs if not isinstance(ref, dict) or str(ref.get("split", name)) == name]


def _mdetr_refs(path: Path) -> list[dict[str, Any]]:
    """Expressions of a file of MDETR, as refs(*).json has them."""
    data = read_json(path, dict, "images", "annotations")
    try:
        things: dict[Any, list[Any]] = {}
        for annotation in data["annotations"]:
            things.setdefault(annotation["image_id"], []).append(annotation["original_id"])
        return [
            {
                "ref_id": image["id"],
                "image_id": image["original_id"],
                "ann_id": things[image["id"]],
                "sentences": [{"sent": image["caption"], "sent_id": image["id"]}],
            }
            for image in data["images"]
        ]
    except KeyError as error:
        raise ValueError(f"{path}: expected an entry {error} of each image and annotation, got none") from error


def read_dataset(folder: Path, split: str) -> Dataset[Entry]:
    """The images of a split, each with all expressions about it in one turn.

    Raises:
        ValueError: files are missing or damaged.
    """
    files = _reference_files(folder)
    refs = _published_refs(files, split) if files else _mdetr_refs(_mdetr_files(folder)[split])
    coco = read_json(_instances(folder) or folder / "instances.json", dict, "images", "annotations", "categories")
    images = _images(folder)
    records = unique(coco["images"], "id")
    # Some files number the annotations of each image from 0.
    annotations = unique(coco["annotations"], "image_id", "id")
    categories = unique(coco["categories"], "id")
    needed = _NEEDED if files else _NEEDED[1:]
    grouped, entries = _by_image(refs, needed)

    def load(entry: Entry) -> Sample:
        image, about = entry
        if not image:
            raise ValueError(f"expected an expression with {', '.join(needed)}, got {about[0]!r:.200}")
        if "file_name" not in image:
            raise ValueError(f"expected one image {image['id']!r:.40}, got none or several")
        return _sample(image, about, annotations, categories, images)

    # An image that is missing in instances.json is reported when it is read, with its number.
    entries += [(records.get((i,), {"id": i}), about) for i, about in grouped.items()]

    def label(entry: Entry) -> str:
        image, about = entry
        if not image:
            ref = about[0]
            return f"{folder}: expression {ref.get('ref_id') if isinstance(ref, dict) else 'without an id'}"
        return str(images / str(image.get("file_name", f"image {image['id']}")))

    return Dataset(FORMAT, folder, split, entries, load, label)


def _images(folder: Path) -> Path:
    """Folder of the images, which RefCOCO shares with COCO."""
    parent = folder.parent
    places = (
        folder / "images",
        folder / "train2014",
        parent / "images" / "mscoco" / "images" / "train2014",
        parent / "images" / "train2014",
        parent / "train2014",
        parent / "coco" / "train2014",
        parent / "coco_2014" / "train2014",
    )
    return images_folder(places, str(folder))


def _by_image(refs: list[Any], needed: tuple[str, ...]) -> tuple[dict[Any, list[dict[str, Any]]], list[Entry]]:
    """Expressions by the id of their image, and an entry for each that lacks what is needed."""
    grouped: dict[Any, list[dict[str, Any]]] = {}
    bad: list[Entry] = []
    for ref in refs:
        if isinstance(ref, dict) and all(name in ref for name in needed):
            grouped.setdefault(ref["image_id"], []).append(ref)
        else:
            bad.append(({}, [ref]))
    return grouped, bad


def _sample(
    image: dict[str, Any],
    about: list[dict[str, Any]],
    annotations: dict[tuple[Any, ...], dict[str, Any]],
    categories: dict[tuple[Any, ...], dict[str, Any]],
    images: Path,
) -> Sample:
    index: dict[Any, int] = {}
    expressions: list[Expression] = []
    rles: list[dict[str, Any]] = []
    names: list[str] = []
    left_out: list[str] = []

    def add(number: Any) -> None:
        if number in index:
            return
        if (annotation := annotations.get((image["id"], number))) is None:
            raise ValueError(f"expected one annotation {number!r:.40} of image {image['id']!r:.40}, got none or several")
        if (category := categories.get((annotation["category_id"],))) is None:
            raise ValueError(f"expected one category {annotation['category_id']!r:.40}, got none or several")
        rle, name = segmentation_rle(annotation["segmentation"], image["height"], image["width"]), category["name"]
        index[number] = len(rles)
        rles.append(rle)
        names.append(name)

    for ref in about:
        ids = [i for i in (ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]) if i != -1]
        try:
            for i in ids:
                add(i)
        except KeyError as error:
            left_out.append(f"expression {ref.get('ref_id')}: expected an entry {error} of its annotation, got none")
            continue
        except ValueError as error:
            left_out.append(f"expression {ref.get('ref_id')}: {error}")
            continue
        for sentence in ref["sentences"]:
            words = (sentence.get("sent") or sentence.get("raw") or "").strip().rstrip(".")
            if any(sign.isalnum() for sign in words):
                expressions.append(Expression(words, tuple(index[i] for i in ids)))
            else:
                left_out.append(f"expression {ref.get('ref_id')}: no words in sentence {sentence.get('sent_id')}")
    if not expressions:
        raise ValueError(f"expected expressions, got none that can be used: {'; '.join(left_out[:1])}")
    return Sample(images / image["file_name"], (refer_turn(expressions),), tuple(names), tuple(rles), left_out=tuple(left_out))
