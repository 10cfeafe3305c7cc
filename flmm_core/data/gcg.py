"""GranD-f: grounded conversation generation (GCG), captions whose phrases have masks.

::

    annotations/train/GranDf_HA_GCG_train.json         list: file_name, caption, groundings {phrase: {token_positives,
                                                       rle_masks}}
    annotations/train/OpenPsgGCG_train.json            the same, of COCO images
    annotations/train/RefCOCOg_GCG_train.json          list: img_file_name, caption, refs {sentence, segmentation}
    annotations/train/flickr_mergedGT_GCG_train.json   COCO: images {caption}, annotations {tokens_positive, sam_mask}
    annotations/val_test/val_gcg_coco_caption_gt.json  COCO: images, annotations {caption, labels}
    annotations/val_test/val_gcg_coco_mask_gt.json     COCO: annotations {segmentation}; an image's n-th belongs to its
                                                       n-th label
    GranDf_HA_images/train, GranDf_HA_images/val_test  images; those of COCO and Flickr lie beside the folder
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flmm_core.config import GroundingConfig
from flmm_core.data.json_data import find_words, images_folder, read_json, repeated, require_unique
from flmm_core.data.masks import segmentation_rle, union_rle
from flmm_core.data.samples import DESCRIBE, Dataset, Sample, Span, Turn
from flmm_core.images.files import image_size

FORMAT = "gcg"

_HELD_OUT = ("val", "test")

Entry = dict[str, Any]
"""An image with its caption as stored in the file; in the COCO layouts with its annotations."""
Grounding = tuple[str, tuple[int, int] | None, list[Any]]
"""A phrase, its character range in the caption if the file states it, and the segmentations whose union it names."""


def splits(folder: Path) -> tuple[str, ...]:
    """Splits of a folder, those for training named after their files; none if it has another layout."""
    train = tuple(path.stem for path in sorted((folder / "annotations" / "train").glob("*GCG*.json")))
    held_out = folder / "annotations" / "val_test"
    return train + tuple(split for split in _HELD_OUT if (held_out / f"{split}_gcg_coco_caption_gt.json").is_file())


def read_dataset(folder: Path, split: str) -> Dataset[Entry]:
    """The images of a split, each with one caption.

    Raises:
        ValueError: files are missing or damaged.
    """
    if split in _HELD_OUT:
        images = _images(folder, "GranDf_HA_images/val_test", "GranDf_HA_images/val")
        return _dataset(folder, split, images, _held_out_entries(folder / "annotations" / "val_test", split), _labelled)
    path = folder / "annotations" / "train" / f"{split}.json"
    if split.startswith("flickr"):
        images = _images(folder, "flikcr_30k/train", "flickr_30k/train", "flickr30k/train", "flickr30k-images")
        return _dataset(folder, split, images, _flickr_entries(path), _flickr)
    if split.startswith("RefCOCOg"):
        images = _images(folder, "coco_2014/train2014", "coco/train2014", "train2014")
        return _dataset(folder, split, images, read_json(path, list), _referred)
    if split.startswith("OpenPsg"):
        images = _images(folder, "coco_2017/train2017", "coco/train2017", "train2017")
    else:
        images = _images(folder, "GranDf_HA_images/train")
    return _dataset(folder, split, images, read_json(path, list), _grounded)


def _images(folder: Path, *names: str) -> Path:
    return images_folder([root / name for name in names for root in (folder, folder.parent)], str(folder))


def _dataset(
    folder: Path, split: str, images: Path, entries: list[Entry], groundings: Callable[[Entry], Iterable[Grounding]]
) -> Dataset[Entry]:
    def path(entry: Entry) -> Path:
        return images / str(entry.get("file_name", entry.get("img_file_name")))

    doubled = repeated(entry["id"] for entry in entries if "id" in entry)

    def load(entry: Entry) -> Sample:
        if doubled:
            require_unique(entry, doubled)
        return _sample(path(entry), entry["caption"], groundings(entry))

    return Dataset(FORMAT, folder, split, entries, load, lambda entry: str(path(entry)))


def _sample(path: Path, caption: str, groundings: Iterable[Grounding]) -> Sample:
    height, width = image_size(path)
    # Character positions refer to the caption without the quotation marks that enclose some captions.
    caption = caption.strip('"').strip()
    spans: list[Span] = []
    names, rles, left_out, after = [], [], [], 0
    for phrase, characters, segmentations in groundings:
        words = phrase.strip()
        start, end = characters if characters is not None else _located(caption, words, after)
        if not 0 <= start < end <= len(caption):
            left_out.append(f"{words!r}: expected these words in the caption, got it without")
            continue
        try:
            rles.append(union_rle([segmentation_rle(s, height, width) for s in segmentations]))
        except ValueError as error:
            left_out.append(f"{words!r}: {error}")
            continue
        after = end
        names.append(words)
        spans.append(Span(start, end, (len(rles) - 1,)))
    spans.sort(key=lambda span: span.start)
    turn = Turn(DESCRIBE, GroundingConfig.refer_prompt, caption, tuple(spans))
    return Sample(path, (turn,), tuple(names), tuple(rles), left_out=tuple(left_out))


def _located(caption: str, words: str, after: int) -> tuple[int, int]:
    """Character range of words in a caption, searched from the previous phrase on; ``(-1, -1)`` if they do not occur."""
    found = find_words(caption, words, after)
    return found if found[0] >= 0 else find_words(caption, words)


def _grounded(entry: Entry) -> Iterable[Grounding]:
    for phrase, grounding in entry["groundings"].items():
        start, end = grounding["token_positives"]
        yield phrase, (start, end), grounding["rle_masks"]


def _referred(entry: Entry) -> Iterable[Grounding]:
    return ((ref["sentence"], None, [ref["segmentation"]]) for ref in entry["refs"])


def _flickr(entry: Entry) -> Iterable[Grounding]:
    for annotation in entry["annotations"]:
        start, end = annotation["tokens_positive"][0]
        yield entry["caption"][start:end], (start, end), [annotation["sam_mask"]]


def _labelled(entry: Entry) -> Iterable[Grounding]:
    if len(entry["labels"]) != len(entry["annotations"]):
        raise ValueError(f"expected a mask for each of its {len(entry['labels'])} labels, got {len(entry['annotations'])}")
    for label, annotation in zip(entry["labels"], entry["annotations"], strict=True):
        yield label, None, [annotation["segmentation"]]


def _held_out_entries(folder: Path, split: str) -> list[Entry]:
    captions = read_json(folder / f"{split}_gcg_coco_caption_gt.json", dict, "images", "annotations")
    masks = read_json(folder / f"{split}_gcg_coco_mask_gt.json", dict, "annotations")
    grouped = _by_image(masks["annotations"])
    first: dict[Any, dict[str, Any]] = {}
    for caption in captions["annotations"]:
        first.setdefault(caption["image_id"], caption)
    entries = []
    for image in captions["images"]:
        said = first.get(image["id"], {})
        name = image.get("file_name") or f"{image['id']}.jpg"
        # Missing entries are reported when the sample is read, with the name of its file.
        entry: Entry = {key: said[key] for key in ("caption", "labels") if key in said}
        entries.append({"id": image["id"], "file_name": name, "annotations": grouped.get(image["id"], []), **entry})
    return entries


def _flickr_entries(path: Path) -> list[Entry]:
    coco = read_json(path, dict, "images", "annotations")
    grouped = _by_image([a for a in coco["annotations"] if not a.get("ignore", False)])
    return [{**image, "annotations": grouped.get(image["id"], [])} for image in coco["images"]]


def _by_image(annotations: list[dict[str, Any]]) -> dict[Any, list[dict[str, Any]]]:
    grouped: dict[Any, list[dict[str, Any]]] = {}
    for annotation in annotations:
        grouped.setdefault(annotation["image_id"], []).append(annotation)
    return grouped
