"""Detects the layout of a data set and opens it; there is one reader for each published layout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flmm_core.data import gcg, panoptic_narrative, reasonseg, refcoco, tabletop, viscot
from flmm_core.data.broken import file_errors
from flmm_core.data.samples import Dataset


@dataclass(frozen=True)
class Format:
    """A layout of data sets."""

    name: str
    summary: str
    needs: str
    """Files by which it is recognised."""
    splits: Callable[[Path], tuple[str, ...]]
    """Splits of a folder; none if the folder has another layout."""
    read: Callable[[Path, str], Dataset[Any]]


FORMATS = {
    entry.name: entry
    for entry in (
        Format(
            tabletop.FORMAT,
            "simulated table tops, and anything else of this project's layout",
            "questions.json, annotations.json",
            tabletop.splits,
            tabletop.read_dataset,
        ),
        Format(
            refcoco.FORMAT,
            "RefCOCO, RefCOCO+, RefCOCOg, gRefCOCO",
            "instances.json and refs(*).json or grefs(*).json; or finetune_refcoco*_*.json of MDETR",
            refcoco.splits,
            refcoco.read_dataset,
        ),
        Format(
            panoptic_narrative.FORMAT,
            "Panoptic Narrative Grounding",
            "annotations/png_coco_*.json",
            panoptic_narrative.splits,
            panoptic_narrative.read_dataset,
        ),
        Format(
            reasonseg.FORMAT, "ReasonSeg", "train, val or test with *.json and *.jpg", reasonseg.splits, reasonseg.read_dataset
        ),
        Format(
            gcg.FORMAT,
            "GranD-f, grounded conversation generation",
            "annotations/train/*GCG*.json or annotations/val_test/*_gcg_coco_caption_gt.json",
            gcg.splits,
            gcg.read_dataset,
        ),
        Format(
            viscot.FORMAT,
            "the benchmark of Visual CoT",
            "benchmark/*.json with question_id, image and conversations",
            viscot.splits,
            viscot.read_dataset,
        ),
    )
}
"""Formats by name."""


def format_of(folder: Path) -> tuple[Format, tuple[str, ...]]:
    """The layout of a folder, and its splits.

    Raises:
        ValueError: it has no known layout, or its expressions are still pickles.
    """
    if not folder.is_dir():
        raise ValueError(f"expected a folder of data at {folder}, got {'a file' if folder.exists() else 'nothing there'}")
    with file_errors(folder):
        for entry in FORMATS.values():
            if names := entry.splits(folder):
                return entry, names
    known = "; ".join(f"{entry.name}: {entry.needs}" for entry in FORMATS.values())
    raise ValueError(f"{folder}: expected a data set of a known layout ({known}), got a folder with none of these")


def open_dataset(source: str) -> Dataset[Any]:
    """Open one split of a data set.

    Args:
        source: ``FOLDER``, ``FORMAT=FOLDER``, or either with ``@SPLIT``, which a folder of several needs.

    Raises:
        ValueError: there is no such data set or split.
    """
    found, folder, names = _chosen(source)
    if len(names) > 1:
        raise ValueError(f"{source}: expected one of its splits after @ ({', '.join(names)}), got none")
    return _read(found, folder, names[0])


def open_splits(source: str) -> list[Dataset[Any]]:
    """Open all splits of a data set, or the one that is named.

    Args:
        source: as for :func:`open_dataset`.

    Raises:
        ValueError: there is no such data set or split.
    """
    found, folder, names = _chosen(source)
    return [_read(found, folder, name) for name in names]


def _read(found: Format, folder: Path, split: str) -> Dataset[Any]:
    with file_errors(folder):
        return found.read(folder, split)


def _chosen(source: str) -> tuple[Format, Path, tuple[str, ...]]:
    """The layout and the folder that a source names, and the splits that it selects."""
    where, _, split = source.partition("@")
    head, equals, tail = where.partition("=")
    folder = Path(tail if equals else where)
    if equals and head not in FORMATS:
        raise ValueError(f"{source}: expected a format of {', '.join(FORMATS)}, got {head}")
    found, names = format_of(folder)
    if equals and found.name != head:
        raise ValueError(f"{folder}: expected {head} ({FORMATS[head].needs}), got {found.name}")
    if not split:
        return found, folder, names
    if split not in names:
        known = ", ".join(names)
        raise ValueError(f"{source}: expected {f'a split of {known}' if known else 'no split: the folder is one'}, got {split}")
    return found, folder, (split,)
