"""The benchmark of Visual CoT: questions whose answer lies in a small part of an image.

::

    benchmark/docvqa.json, gqa.json, ...    or the files themselves in the folder; JSON, or one entry a line as .jsonl
    cot/docvqa/..., cot/gqa/...             images, as the files name them

An entry has ``image`` (the file, and the file again with ``###`` and the part), and ``conversations``: the question with a
request for the part, the part, a request to answer, the answer. The part ``[x0, y0, x1, y1]`` is in shares of a square that
holds the image in its middle, whose side is the image's longer one.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from flmm_core.data.json_data import read_json, read_text
from flmm_core.data.masks import mask_rle
from flmm_core.data.samples import DETAIL, Dataset, Sample, Span, Turn
from flmm_core.images.files import image_size

FORMAT = "viscot"

_REQUEST = re.compile(r"\s*Please provide the bounding box")
"""Text that separates a question from the request for the part."""
_MARK = "###"
"""Separates the file and the part in the name of the second image."""


def splits(folder: Path) -> tuple[str, ...]:
    """The files of the benchmark, without their endings; none if the folder has another layout."""
    return tuple(sorted(path.stem for path in _files(folder) if _is_benchmark(path)))


def _files(folder: Path) -> list[Path]:
    places = [folder / "benchmark", folder]
    return [path for place in places for ending in ("*.json", "*.jsonl") for path in place.glob(ending) if path.is_file()]


def _is_benchmark(path: Path) -> bool:
    """Whether the first entry is one of the benchmark; only the beginning of the file is read, as files can be large."""
    with path.open(encoding="utf-8", errors="replace") as file:
        head = file.read(20_000)
    return '"question_id"' in head and '"conversations"' in head and _MARK in head


def read_dataset(folder: Path, split: str) -> Dataset[dict[str, Any]]:
    """The questions of one file.

    Raises:
        ValueError: the file is damaged.
    """
    path = next(path for path in _files(folder) if path.stem == split)
    if path.suffix == ".json":
        entries = read_json(path, list)
    else:
        try:
            entries = [json.loads(line) for line in read_text(path).split("\n") if line.strip()]
        except (ValueError, RecursionError) as error:
            raise ValueError(f"expected one JSON entry a line at {path}, got a line that is none ({error})") from error
    return Dataset(
        FORMAT, folder, split, entries, lambda entry: _sample(folder, entry), lambda entry: str(folder / _file(entry))
    )


def _file(entry: dict[str, Any]) -> str:
    return str(entry["image"][0])


def _sample(folder: Path, entry: dict[str, Any]) -> Sample:
    path = folder / _file(entry)
    height, width = image_size(path)
    said = [turn["value"] for turn in entry["conversations"]]
    if len(said) < 4:
        raise ValueError(f"expected a question, a part, a request and an answer, got {len(said)} turns")
    question = _REQUEST.split(said[0].replace("<image>", ""))[0].strip()
    part = Image.new("L", (width, height))
    x0, y0, x1, y1 = _pixels(said[1], height, width)
    part.paste(1, (x0, y0, x1, y1))
    turn = Turn(DETAIL, question, said[3].strip(), (Span(0, 0, (0,)),))
    return Sample(path, (turn,), ("part",), (mask_rle(np.asarray(part)),))


def _pixels(words: str, height: int, width: int) -> tuple[int, int, int, int]:
    """A part as XYXY pixels of the image, ends exclusive; one pixel at least."""
    shares = [float(number) for number in re.findall(r"-?\d*\.?\d+(?:e[+-]?\d+)?", words, re.IGNORECASE)]
    if len(shares) != 4:
        raise ValueError(f"expected a part [x0, y0, x1, y1], got {words!r:.60}")
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    x0, y0, x1, y1 = (
        min(max(round(share * side) - margin, 0), length)
        for share, margin, length in zip(shares, (left, top) * 2, (width, height) * 2, strict=True)
    )
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"expected a part inside the image, got {words!r:.60}")
    return x0, y0, x1, y1
