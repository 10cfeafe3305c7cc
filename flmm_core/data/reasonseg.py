"""ReasonSeg: questions whose answers require reasoning, and the regions that they refer to.

::

    train/*.jpg, train/*.json    an image and its annotation: text, is_sentence, shapes {label, points}
    val/..., test/...

Shapes have the labels ``target``, and ``ignore`` for pixels that are not evaluated.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flmm_core.data.json_data import read_json
from flmm_core.data.masks import polygon_rle
from flmm_core.data.samples import REASON, Dataset, Expression, Sample, Span, Turn, refer_turn
from flmm_core.images.files import image_size

FORMAT = "reasonseg"

_SPLITS = ("train", "val", "test")
_LOOKED_AT = 20
"""Files that are checked for an annotation, as some may be damaged."""


def splits(folder: Path) -> tuple[str, ...]:
    """The splits of a folder; none if it has another layout."""
    return tuple(split for split in _SPLITS if any(map(_is_annotation, sorted((folder / split).glob("*.json"))[:_LOOKED_AT])))


def _is_annotation(path: Path) -> bool:
    try:
        read_json(path, dict, "shapes", "text")
    except ValueError:
        return False
    return True


def read_dataset(folder: Path, split: str) -> Dataset[Path]:
    """The images of a split. A sentence is a question about the whole; other words are an expression for refer mode."""
    files = sorted((folder / split).glob("*.json"))
    return Dataset(FORMAT, folder, split, files, _sample, str)


def _sample(path: Path) -> Sample:
    annotation = read_json(path, dict, "shapes", "text")
    image = path.with_suffix(".jpg")
    height, width = image_size(image)
    rles: list[dict[str, Any]] = []
    targets: list[int] = []
    ignored: list[int] = []
    left_out: list[str] = []
    for number, shape in enumerate(annotation["shapes"]):
        group = {"target": targets, "ignore": ignored}.get(shape["label"].lower())
        if group is None:
            continue  # labels such as "flag" mark no region
        try:
            rles.append(polygon_rle(shape["points"], height, width))
        except ValueError as error:
            left_out.append(f"shape {number}: {error}")
            continue
        group.append(len(rles) - 1)
    if not targets:
        raise ValueError("expected a shape with the label target, got none that can be used")
    texts = annotation["text"] if isinstance(annotation["text"], list) else [annotation["text"]]
    meant = tuple(targets)
    if annotation.get("is_sentence", True):
        turns = tuple(Turn(REASON, text.strip(), "", (Span(0, 0, meant),)) for text in texts)
    else:
        turns = (refer_turn([Expression(text.strip().rstrip("."), meant) for text in texts]),)
    names = tuple("target" if i in meant else "ignored" for i in range(len(rles)))
    return Sample(image, turns, names, tuple(rles), tuple(ignored), tuple(left_out))
