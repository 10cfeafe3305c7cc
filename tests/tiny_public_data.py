"""Data sets of two pictures in each published layout; written in a moment."""

import json
import pickle
from pathlib import Path

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

HEIGHT, WIDTH = 60, 80
LEFT = (8, 10, 28, 40)
RIGHT = (44, 20, 70, 50)
"""Boxes XYXY of two things; ends are exclusive."""


def box_mask(box):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = True
    return mask


def polygon(box):
    x0, y0, x1, y1 = box
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def compressed(box):
    rle = coco_mask.encode(np.asfortranarray(box_mask(box).astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def uncompressed(box):
    flat = box_mask(box).ravel(order="F")
    changes = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.concatenate([[0], changes, [flat.size]])).tolist()
    return {"size": [HEIGHT, WIDTH], "counts": counts}


def write_image(path):
    image = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
    image[box_mask(LEFT)] = (220, 40, 40)
    image[box_mask(RIGHT)] = (50, 70, 230)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path, quality=95)


def dump(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def sentence(number, words):
    return {"tokens": words.split(), "raw": words.title(), "sent_id": number, "sent": words}


def coco_instances():
    """Annotation 0 is the first one: an id that never matches where ids are taken for truth values."""
    return {
        "images": [
            {"id": number, "file_name": f"COCO_train2014_{number:012d}.jpg", "height": HEIGHT, "width": WIDTH}
            for number in (9, 30)
        ],
        "annotations": [
            {"id": 0, "image_id": 9, "category_id": 1, "segmentation": [polygon(LEFT)], "bbox": [8, 10, 20, 30]},
            {"id": 1, "image_id": 9, "category_id": 2, "segmentation": uncompressed(RIGHT), "iscrowd": 1},
            {"id": 2, "image_id": 30, "category_id": 1, "segmentation": [polygon(LEFT), polygon(RIGHT)]},
        ],
        "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "person"}],
    }


def _ref(number, image, annotation, split, sentences):
    return {
        "ref_id": number, "ann_id": annotation, "image_id": image, "category_id": 1, "split": split,
        "file_name": f"COCO_train2014_{image:012d}_{number}.jpg", "sentences": sentences,
        "sent_ids": [s["sent_id"] for s in sentences],
    }  # fmt: skip


def write_refcoco(root: Path, *, by: str = "unc") -> Path:
    """As downloaded: the expressions are a pickle of Python 2."""
    folder = root / "refcoco"
    refs = [
        _ref(1, 9, 0, "train", [sentence(1, "red cup"), sentence(2, "cup on the left")]),
        _ref(2, 9, 1, "train", [sentence(3, "blue person")]),
        _ref(3, 30, 2, "val", [sentence(4, "both"), sentence(5, " ")]),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"refs({by}).p").write_bytes(pickle.dumps(refs, protocol=2))
    dump(folder / "instances.json", coco_instances())
    for number in (9, 30):
        write_image(root / "images" / "mscoco" / "images" / "train2014" / f"COCO_train2014_{number:012d}.jpg")
    return folder


def write_mdetr(root: Path) -> Path:
    """An image for each expression; masks are in COCO's own file."""
    folder = root / "mdetr_annotations"
    split = {"val": [(9, 0, "red cup"), (9, 1, "blue person"), (9, 0, "cup on the left")], "testA": [(30, 2, "both")]}
    for name, entries in split.items():
        images, annotations = [], []
        for i, (image, annotation, caption) in enumerate(entries):
            common = {"height": HEIGHT, "width": WIDTH, "dataset_name": "refcoco"}
            file_name = f"COCO_train2014_{image:012d}.jpg"
            images.append({"id": 70 + i, "original_id": image, "file_name": file_name, "caption": caption, **common})
            annotations.append({"id": 90 + i, "original_id": annotation, "image_id": 70 + i, "bbox": [8, 10, 20, 30]})
        dump(folder / f"finetune_refcoco_{name}.json", {"images": images, "annotations": annotations, "categories": []})
    dump(root / "annotations" / "instances_train2014.json", coco_instances())
    for number in (9, 30):
        write_image(root / "train2014" / f"COCO_train2014_{number:012d}.jpg")
    return folder


def write_grefcoco(root: Path) -> Path:
    folder = root / "grefcoco"
    refs = [
        {**_ref(1, 9, [0, 1], "val", [sentence(1, "cup and person")]), "category_id": [1, 2], "no_target": False},
        {**_ref(2, 9, [-1], "val", [sentence(2, "green dog")]), "category_id": [-1], "no_target": True},
        {**_ref(3, 30, [2], "testA", [sentence(3, "cups")]), "category_id": [1], "no_target": False},
    ]
    dump(folder / "grefs(unc).json", refs)
    dump(folder / "instances.json", coco_instances())
    for number in (9, 30):
        write_image(root / "train2014" / f"COCO_train2014_{number:012d}.jpg")
    return folder


def write_png(root: Path) -> Path:
    folder = root / "panoptic_narrative_grounding"
    annotations = folder / "annotations"
    segments, narratives, panoptic = {"cup": 7 + 256 * 3 + 65536 * 2, "wall": 500}, [], []
    for number in (9, 30):
        numbers = np.full((HEIGHT, WIDTH), segments["wall"])
        numbers[box_mask(LEFT)] = segments["cup"]
        numbers[box_mask(RIGHT)] = segments["cup"] + 1
        colours = np.stack([numbers % 256, numbers // 256 % 256, numbers // 65536], axis=-1).astype(np.uint8)
        path = annotations / "panoptic_segmentation" / "val2017" / f"{number:012d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(colours).save(path)
        write_image(folder / "images" / "val2017" / f"{number:012d}.jpg")
        infos = [
            {"id": segments["cup"], "category_id": 47, "iscrowd": 0},
            {"id": segments["cup"] + 1, "category_id": 47, "iscrowd": 0},
            {"id": segments["wall"], "category_id": 199, "iscrowd": 0},
        ]
        panoptic.append({"image_id": number, "file_name": path.name, "segments_info": infos})
        narratives.append(
            {
                "image_id": str(number),
                "annotator_id": 59,
                "caption": "In this image there is a cup and in the background there are cups near the wall.",
                "segments": [
                    {"utterance": "In this image there is a", "segment_ids": [], "plural": False, "noun": False},
                    {"utterance": "cup", "segment_ids": [str(segments["cup"])], "plural": False, "noun": True},
                    {"utterance": "and in the", "segment_ids": [], "plural": False, "noun": False},
                    {"utterance": "background", "segment_ids": [], "plural": False, "noun": True},
                    {"utterance": "there are", "segment_ids": [], "plural": False, "noun": False},
                    {"utterance": "cups", "segment_ids": [str(segments["cup"]), str(segments["cup"] + 1)], "plural": True,
                     "noun": True},
                    {"utterance": "near the", "segment_ids": [], "plural": False, "noun": False},
                    {"utterance": "wall.", "segment_ids": [str(segments["wall"])], "plural": False, "noun": True},
                ],
            }
        )  # fmt: skip
    categories = [
        {"id": 47, "name": "cup", "isthing": 1, "supercategory": "kitchen"},
        {"id": 199, "name": "wall-other-merged", "isthing": 0, "supercategory": "wall"},
    ]
    dump(annotations / "png_coco_val2017.json", narratives)
    dump(annotations / "panoptic_val2017.json", {"images": [], "annotations": panoptic, "categories": categories})
    return folder


def write_reasonseg(root: Path) -> Path:
    folder = root / "ReasonSeg"

    def corners(box):
        flat = polygon(box)
        return [[float(x), float(y)] for x, y in zip(flat[::2], flat[1::2], strict=True)]

    def shape(label, box):
        return {"label": label, "labels": [label], "shape_type": "polygon", "points": corners(box), "group_id": None}

    question = "What would one drink coffee from?"
    for name, text, sentence_like in (("a", [question, "Which thing holds coffee?"], True), ("b", ["the café’s cup"], False)):
        write_image(folder / "val" / f"{name}.jpg")
        record = {
            "text": text,
            "is_sentence": sentence_like,
            "shapes": [shape("target", LEFT), shape("ignore", RIGHT), shape("flag", RIGHT)],
        }
        # Some of the published files are in Windows-1252.
        (folder / "val" / f"{name}.json").write_bytes(json.dumps(record, ensure_ascii=False).encode("cp1252"))
    return folder


def write_viscot(root: Path, ending: str = "json", part: str = "") -> Path:
    """Two questions: about a wide image, and about the same one with rows and columns exchanged."""
    folder = root / "viscot"
    entries = []
    for number, (name, box, answer) in enumerate((("a", LEFT, "red"), ("b", RIGHT, "blue"))):
        path = folder / "cot" / "gqa" / f"{name}.jpg"
        write_image(path)
        x0, y0, x1, y1 = box
        margins = (0, (WIDTH - HEIGHT) // 2)
        if name == "b":
            Image.open(path).transpose(Image.Transpose.TRANSPOSE).save(path, quality=95)
            x0, y0, x1, y1, margins = y0, x0, y1, x1, margins[::-1]
        shares = ", ".join(f"{p / WIDTH:.4f}" for p in (x0 + margins[0], y0 + margins[1], x1 + margins[0], y1 + margins[1]))
        question = f"<image>\nWhat color is the {'cup' if name == 'a' else 'box'}?"
        request = " Please provide the bounding box coordinate of the region that can help you answer the question better."
        said = (question + request, part or f"[{shares}]", "<image>", answer)
        talk = [{"from": who, "value": words} for who, words in zip(("human", "gpt") * 2, said, strict=True)]
        file = f"cot/gqa/{name}.jpg"
        entries.append({"question_id": number, "image": [file, f"{file}###[{x0}, {y0}, {x1}, {y1}]"], "conversations": talk})
    path = folder / "benchmark" / f"gqa.{ending}"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps(entries) if ending == "json" else "\n".join(map(json.dumps, entries)))
    return folder


def write_gcg(root: Path) -> Path:
    folder = root / "GranDf"
    caption = "A red cup stands beside a blue box."
    train, held_out = folder / "annotations" / "train", folder / "annotations" / "val_test"

    def at(words):
        return [caption.index(words), caption.index(words) + len(words)]

    groundings = {
        "blue box": {"token_positives": at("blue box"), "rle_masks": [compressed(RIGHT)]},
        "red cup": {"token_positives": at("red cup"), "rle_masks": [compressed(LEFT)]},
    }
    dump(train / "GranDf_HA_GCG_train.json", [{"file_name": "sa_1.jpg", "caption": f'"{caption}"', "groundings": groundings}])
    dump(train / "OpenPsgGCG_train.json",
         [{"file_name": "000000000009.jpg", "image_id": "9", "caption": caption, "groundings": groundings}])  # fmt: skip
    refs = [
        {"sentence": words, "segmentation": [polygon(box)]}
        for words, box in (("red cup", LEFT), ("Blue box", RIGHT), ("green dog", RIGHT))
    ]
    dump(train / "RefCOCOg_GCG_train.json",
         [{"img_file_name": "COCO_train2014_000000000009.jpg", "caption": caption, "refs": refs}])  # fmt: skip
    flickr = {
        "images": [{"id": 1, "file_name": "36979.jpg", "caption": caption, "height": HEIGHT, "width": WIDTH}],
        "annotations": [
            {"id": i, "image_id": 1, "bbox": bbox, "tokens_positive": [at(words)], "sam_mask": compressed(box)}
            for i, (bbox, words, box) in enumerate((([8, 10, 20, 30], "red cup", LEFT), ([44, 20, 26, 30], "blue box", RIGHT)))
        ],
    }
    dump(train / "flickr_mergedGT_GCG_train.json", flickr)
    images = [{"id": "sa_2"}, {"id": "sa_3"}]
    captions = [{"id": i, "image_id": image["id"], "caption": caption, "labels": ["red cup", "blue box"]}
                for i, image in enumerate(images)]  # fmt: skip
    masks = [{"id": 2 * i + j, "image_id": image["id"], "category_id": 1, "segmentation": compressed(box)}
             for i, image in enumerate(images) for j, box in enumerate((LEFT, RIGHT))]  # fmt: skip
    dump(held_out / "val_gcg_coco_caption_gt.json", {"images": images, "annotations": captions})
    dump(held_out / "val_gcg_coco_mask_gt.json", {"images": images, "annotations": masks})
    for path in ("GranDf_HA_images/train/sa_1.jpg", "GranDf_HA_images/val_test/sa_2.jpg", "GranDf_HA_images/val_test/sa_3.jpg"):
        write_image(folder / path)
    for path in (
        "coco_2017/train2017/000000000009.jpg",
        "coco_2014/train2014/COCO_train2014_000000000009.jpg",
        "flikcr_30k/train/36979.jpg",
    ):
        write_image(root / path)
    return folder
