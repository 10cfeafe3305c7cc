"""Writes a table-top data set in the layouts of published data sets.

This runs every reader, evaluation and training without a download, on images of the shipped model's domain::

    python scripts/write_published_layouts.py data/test data/published

creates ``refcoco``, ``grefcoco``, ``panoptic_narrative_grounding``, ``ReasonSeg``, ``GranDf`` and ``viscot`` in the second
folder.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from flmm_core.data.masks import mask_rle
from flmm_core.data.samples import REFER_KINDS, Sample, expressions_of
from flmm_core.data.tabletop import read_dataset

SPLIT = "val"
QUESTIONS = ("where", "fetch", "attribute")
"""Kinds of turns about one object, which become questions of ReasonSeg."""
BACKGROUND = 199
"""Category of Panoptic Narrative Grounding for the table and the room, which are stuff."""


def write_layouts(source: Path, out: Path) -> None:
    """Write all layouts of the images of a table-top data set."""
    samples = list(read_dataset(source))
    kinds = sorted({name.split()[-1] for sample in samples for name in sample.names})
    categories = {kind: number for number, kind in enumerate(kinds, 1)}
    _write_refcoco(samples, out, categories)
    _write_png(samples, out / "panoptic_narrative_grounding", categories)
    _write_reasonseg(samples, out / "ReasonSeg")
    _write_gcg(samples, out / "GranDf")
    _write_viscot(samples, out / "viscot")


def _write_refcoco(samples: list[Sample], out: Path, categories: dict[str, int]) -> None:
    """Expressions of present objects as RefCOCO, these and names of absent objects as gRefCOCO."""
    images, annotations, refs, grefs = [], [], [], []
    folder = out / "train2014"
    for number, sample in enumerate(samples):
        height, width = sample.rles[0]["size"]
        name = f"COCO_train2014_{number:012d}.jpg"
        images.append({"id": number, "file_name": name, "height": height, "width": width})
        first = len(annotations)
        annotations += [
            {"id": first + i, "image_id": number, "category_id": categories[words.split()[-1]], "segmentation": _text(rle)}
            for i, (words, rle) in enumerate(zip(sample.names, sample.rles, strict=True))
        ]
        asked = [one for turn in sample.turns if turn.kind in REFER_KINDS for one in expressions_of(turn)]
        words = {objects: [one.words for one in asked if one.objects == objects] for objects in {one.objects for one in asked}}
        for objects, sentences in sorted(words.items()):
            said = [{"sent_id": i, "sent": text, "raw": text, "tokens": text.split()} for i, text in enumerate(sentences)]
            ref = {"image_id": number, "split": SPLIT, "sentences": said, "file_name": name}
            ids = [first + i for i in objects]
            if len(ids) == 1:
                refs.append({"ref_id": len(refs), "ann_id": ids[0], **ref})
            grefs.append({"ref_id": len(grefs), "ann_id": ids or [-1], "no_target": not ids, **ref})
        _copy(sample, folder / name)
    instances = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": kind} for kind, number in categories.items()],
    }
    for name, file, expressions in (("refcoco", "refs(unc).json", refs), ("grefcoco", "grefs(unc).json", grefs)):
        _dump(out / name / file, expressions)
        _dump(out / name / "instances.json", instances)


def _write_png(samples: list[Sample], out: Path, categories: dict[str, int]) -> None:
    """Lists of objects as narratives; the table and the room are stuff without a phrase."""
    panoptic, narratives = [], []
    for number, sample in enumerate(samples):
        turn = next(turn for turn in sample.turns if turn.kind == "list")
        numbers = np.full(sample.rles[0]["size"], 1, np.uint32)
        for i in range(len(sample.rles)):
            numbers[sample.mask([i])] = 1000 + i
        file = f"{number:012d}"
        colours = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], axis=-1).astype(np.uint8)
        path = out / "annotations" / "panoptic_segmentation" / SPLIT / f"{file}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(colours).save(path)
        infos = [{"id": 1000 + i, "category_id": categories[n.split()[-1]]} for i, n in enumerate(sample.names)]
        infos.append({"id": 1, "category_id": BACKGROUND})
        panoptic.append({"image_id": number, "file_name": path.name, "segments_info": infos})
        segments, at = [], 0
        for span in turn.spans:
            segments.append({"utterance": turn.answer[at : span.start], "segment_ids": [], "plural": False, "noun": False})
            ids = [str(1000 + i) for i in span.objects]
            words = turn.answer[span.start : span.end]
            segments.append({"utterance": words, "segment_ids": ids, "plural": len(ids) > 1, "noun": True})
            at = span.end
        narratives.append({"image_id": str(number), "annotator_id": 0, "caption": turn.answer, "segments": segments})
        _copy(sample, out / "images" / SPLIT / f"{file}.jpg")
    kinds = [{"id": number, "name": kind, "isthing": 1} for kind, number in categories.items()]
    kinds.append({"id": BACKGROUND, "name": "table-merged", "isthing": 0})
    _dump(out / "annotations" / f"png_coco_{SPLIT}.json", narratives)
    _dump(out / "annotations" / f"panoptic_{SPLIT}.json", {"images": [], "annotations": panoptic, "categories": kinds})


def _write_reasonseg(samples: list[Sample], out: Path) -> None:
    """Questions about one object, with its outlines as polygons."""
    for number, sample in enumerate(samples):
        for turn in (turn for turn in sample.turns if turn.kind in QUESTIONS and len(turn.present) == 1):
            (span,) = turn.present
            outlines, _ = cv2.findContours(sample.mask(span.objects).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
            shapes = [{"label": "target", "points": line[:, 0].tolist()} for line in outlines if len(line) >= 3]
            name = f"{number:06d}_{turn.kind}"
            _dump(out / SPLIT / f"{name}.json", {"text": [turn.question], "is_sentence": True, "shapes": shapes})
            _copy(sample, out / SPLIT / f"{name}.jpg")


def _write_gcg(samples: list[Sample], out: Path) -> None:
    """Lists of objects as captions."""
    images, captions, masks = [], [], []
    for number, sample in enumerate(samples):
        turn = next(turn for turn in sample.turns if turn.kind == "list")
        image = f"{number:06d}"
        images.append({"id": image})
        captions.append({"id": number, "image_id": image, "caption": turn.answer, "labels": list(turn.phrases)})
        for span in turn.spans:
            rle = _text(mask_rle(sample.mask(span.objects)))
            masks.append({"id": len(masks), "image_id": image, "category_id": 1, "segmentation": rle})
        _copy(sample, out / "GranDf_HA_images" / "val_test" / f"{image}.jpg")
    folder = out / "annotations" / "val_test"
    _dump(folder / f"{SPLIT}_gcg_coco_caption_gt.json", {"images": images, "annotations": captions})
    _dump(folder / f"{SPLIT}_gcg_coco_mask_gt.json", {"images": images, "annotations": masks})


def _write_viscot(samples: list[Sample], out: Path) -> None:
    """Questions about one object, whose box is the relevant part."""
    entries = []
    for number, sample in enumerate(samples):
        file = f"cot/{SPLIT}/{number:06d}.jpg"
        for turn in (turn for turn in sample.turns if turn.kind in QUESTIONS and len(turn.present) == 1):
            mask = sample.mask(turn.present[0].objects)
            side, (height, width) = max(mask.shape), mask.shape
            rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            edges = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            margins = ((side - width) // 2, (side - height) // 2) * 2
            part = ", ".join(f"{(edge + margin) / side:.3f}" for edge, margin in zip(edges, margins, strict=True))
            said = (
                f"<image>\n{turn.question} Please provide the bounding box coordinate of the region that can help you answer"
                " the question better.",
                f"[{part}]",
                "<image>",
                turn.answer,
            )
            talk = [{"from": who, "value": words} for who, words in zip(("human", "gpt") * 2, said, strict=True)]
            images = [file, f"{file}###[{', '.join(map(str, edges))}]"]
            entries.append({"question_id": len(entries), "image": images, "conversations": talk})
        _copy(sample, out / file)
    _dump(out / "benchmark" / f"{SPLIT}.json", entries)


def _text(rle: dict[str, Any]) -> dict[str, Any]:
    """A compressed RLE in the form for JSON."""
    counts = rle["counts"]
    return {"size": list(rle["size"]), "counts": counts.decode() if isinstance(counts, bytes) else counts}


def _copy(sample: Sample, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(sample.image()).save(path, quality=95)


def _dump(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def main() -> None:
    """Read the arguments, write, and say what was written."""
    parser = argparse.ArgumentParser(description="Writes a table-top data set in published layouts.")
    parser.add_argument("source", type=Path, help="folder of `flmm scenes`")
    parser.add_argument("out", type=Path, help="folder to write; it must not hold anything yet")
    args = parser.parse_args()
    if args.out.exists() and any(args.out.iterdir()):
        parser.error(f"{args.out}: expected a folder that is empty or not there yet, got one with files")
    write_layouts(args.source, args.out)
    print(f"published layouts: {args.out}")


if __name__ == "__main__":
    main()
