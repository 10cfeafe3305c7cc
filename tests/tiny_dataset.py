"""A data set of coloured rectangles in the layout of `flmm scenes`; written in a moment, no renderer."""

import json
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

KINDS = ("mug", "lemon", "box")
COLORS = {"red": (220, 40, 40), "green": (40, 200, 60), "blue": (50, 70, 230)}
HEIGHT, WIDTH = 48, 64


def span(answer, phrase, ids):
    start = answer.index(phrase)
    return {"start": start, "end": start + len(phrase), "annotation_ids": list(ids)}


def turns_of(names, ids):
    """Turns of several kinds about two things, the first of them on the left; names without ids mean what is not there."""
    left, right = names
    listed, where = f"I see a {left} and a {right}.", f"The {left} is on the left."
    count, refer = "There are two objects.", f"{right}. {left} left of the {right}."
    relational = f"{left} left of the {right}"
    absence, mistake, absent = "No, there is no black pan.", "The pan is here.", f"black pan. {left}."
    return [
        {"kind": "list", "question": "What do you see?", "answer": listed,
         "spans": [span(listed, left, ids[:1]), span(listed, right, ids[1:])]},
        {"kind": "where", "question": f"Where is the {left}?", "answer": where, "spans": [span(where, left, ids[:1])]},
        {"kind": "relation", "question": f"What is left of the {right}?", "answer": f"The {left} is left of the {right}.",
         "spans": [span(f"The {left} is left of the {right}.", left, ids[:1]),
                   span(f"The {left} is left of the {right}.", right, ids[1:])]},
        {"kind": "count", "question": "How many objects are there?", "answer": count,
         "spans": [span(count, "two objects", ids)]},
        {"kind": "absence", "question": "Is there a black pan?", "answer": absence,
         "spans": [span(absence, "black pan", [])]},
        {"kind": "refer", "question": "Please give me a description of the image.", "answer": refer,
         "spans": [span(refer, right, ids[1:]), span(refer, relational, ids[:1])]},
        {"kind": "refer_absent", "question": "Please give me a description of the image.", "answer": absent,
         "spans": [span(absent, "black pan", []), span(absent, left, ids[:1])]},
        {"kind": "mistake", "question": "Where is the pan?", "answer": mistake, "spans": [span(mistake, "pan", [])]},
    ]  # fmt: skip


def write_tiny_dataset(folder: Path, count: int = 3, seed: int = 0, portrait: tuple[int, ...] = ()) -> Path:
    """``count`` images of two rectangles that do not touch; those of ``portrait`` lie on their side."""
    rng = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    coco = {"images": [], "annotations": [], "categories": [{"id": i + 1, "name": kind} for i, kind in enumerate(KINDS)]}
    asked = []
    for index in range(count):
        image = np.full((HEIGHT, WIDTH, 3), 128, np.uint8)
        colors = rng.permutation(list(COLORS))[:2].tolist()
        kinds = rng.permutation(len(KINDS))[:2].tolist()
        ids = []
        for side, (color, kind) in enumerate(zip(colors, kinds, strict=True)):
            mask = np.zeros((HEIGHT, WIDTH), np.uint8)
            top, left = int(rng.integers(2, 20)), int(rng.integers(2, 10)) + side * 32
            mask[top : top + int(rng.integers(8, 24)), left : left + int(rng.integers(8, 20))] = 1
            image[mask > 0] = COLORS[color]
            rle = coco_mask.encode(np.asfortranarray(mask.T if index in portrait else mask))
            ids.append(len(coco["annotations"]) + 7)
            coco["annotations"].append(
                {"id": ids[-1], "image_id": index, "category_id": kind + 1, "attributes": {"color": color},
                 "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()}}
            )  # fmt: skip
        image = image.transpose(1, 0, 2) if index in portrait else image
        height, width = image.shape[:2]
        coco["images"].append({"id": index, "file_name": f"{index:06d}.png", "height": height, "width": width})
        names = [f"{color} {KINDS[kind]}" for color, kind in zip(colors, kinds, strict=True)]
        asked.append({"image_id": index, "turns": turns_of(names, ids)})
        cv2.imwrite(str(folder / "images" / f"{index:06d}.png"), np.ascontiguousarray(image[..., ::-1]))
    (folder / "annotations.json").write_text(json.dumps(coco))
    (folder / "questions.json").write_text(json.dumps(asked))
    return folder


def make_strip(folder: Path, index: int, height: int = 5, width: int = 1093) -> None:
    """Make one image of a data set a strip with two boxes, as a line camera takes it."""
    path = folder / "annotations.json"
    coco = json.loads(path.read_text())
    coco["images"][index].update(height=height, width=width)
    about = [annotation for annotation in coco["annotations"] if annotation["image_id"] == index]
    for annotation, (x0, x1) in zip(about, ((width // 9, width // 3), (width // 2, width)), strict=True):
        mask = np.zeros((height, width), np.uint8)
        mask[:, x0:x1] = 1
        rle = coco_mask.encode(np.asfortranarray(mask))
        annotation["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
    path.write_text(json.dumps(coco))
    cv2.imwrite(str(folder / "images" / f"{index:06d}.png"), np.full((height, width, 3), 128, np.uint8))
