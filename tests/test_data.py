"""Readers of published data sets, on tiny ones in the true layouts."""

import copy
import errno
import json
import math
import os
import pickle
import random
import re
import signal
import tracemalloc

import numpy as np
import pytest
import tiny_public_data as tiny
import torch
from documents import loaded_script
from PIL import ExifTags, Image
from pycocotools import mask as coco_mask
from tiny_dataset import write_tiny_dataset

from flmm_cli.main import main
from flmm_core.data.broken import BrokenSampleError
from flmm_core.data.check import look_through
from flmm_core.data.formats import format_of, open_dataset, open_splits
from flmm_core.data.masks import segmentation_rle
from flmm_core.data.pickles import convert_refs, read_refs
from flmm_core.data.samples import (
    DESCRIBE,
    DETAIL,
    REASON,
    REFER,
    REFER_ABSENT,
    Expression,
    expressions_of,
    refer_turn,
)
from flmm_core.data.visit import visit_samples
from flmm_core.drawing.truth import true_answer
from flmm_core.errors import MemoryFullError

LEFT, RIGHT = tiny.box_mask(tiny.LEFT), tiny.box_mask(tiny.RIGHT)


def phrases(sample, turn):
    return {words: sample.mask(span.objects) for words, span in zip(turn.phrases, turn.spans, strict=True) if span.objects}


def test_refcoco(tmp_path):
    folder = tiny.write_refcoco(tmp_path)
    with pytest.raises(ValueError, match="flmm convert-data"):
        format_of(folder)
    assert main(["convert-data", str(folder)]) == 0
    assert format_of(folder)[1] == ("train", "val")
    (sample,) = open_dataset(f"refcoco={folder}@train")
    (turn,) = sample.turns
    assert turn.kind == REFER
    assert turn.answer == "red cup. cup on the left. blue person."
    found = phrases(sample, turn)
    assert (found["red cup"] == LEFT).all() and (found["cup on the left"] == LEFT).all()
    assert (found["blue person"] == RIGHT).all()
    assert sample.names == ("cup", "person")
    assert sample.image().shape == (tiny.HEIGHT, tiny.WIDTH, 3)
    (other,) = open_dataset(f"{folder}@val")
    assert (phrases(other, other.turns[0])["both"] == (LEFT | RIGHT)).all()
    assert other.left_out == ("expression 3: no words in sentence 5",)


def test_refcocog_has_two_kinds_of_splits(tmp_path):
    tiny.write_refcoco(tmp_path, by="google")
    folder = tiny.write_refcoco(tmp_path, by="umd")
    convert_refs(folder)
    assert format_of(folder)[1] == ("google/train", "google/val", "umd/train", "umd/val")
    assert len(open_dataset(f"{folder}@umd/val")) == 1


def test_the_json_release_of_mdetr(tmp_path):
    folder = tiny.write_mdetr(tmp_path)
    found, splits = format_of(folder)
    assert (found.name, splits) == ("refcoco", ("testA", "val"))
    (sample,) = open_dataset(f"refcoco={folder}@val")
    (turn,) = sample.turns
    assert turn.answer == "red cup. blue person. cup on the left."
    masks = phrases(sample, turn)
    assert (masks["red cup"] == LEFT).all() and (masks["cup on the left"] == LEFT).all()
    assert (masks["blue person"] == RIGHT).all() and sample.names == ("cup", "person")
    (other,) = open_dataset(f"{folder}@testA")
    assert (phrases(other, other.turns[0])["both"] == (LEFT | RIGHT)).all()
    path = folder / "finetune_refcoco_testA.json"
    (folder / "finetune_refcoco+_testA.json").write_bytes(path.read_bytes())
    assert format_of(folder)[1] == ("refcoco+/testA", "refcoco/testA", "refcoco/val")
    path.write_text(path.read_text().replace("original_id", "number"))
    with pytest.raises(ValueError, match=r"finetune_refcoco_testA\.json: expected an entry 'original_id' of each image"):
        open_dataset(f"{folder}@refcoco/testA")
    (tmp_path / "annotations" / "instances_train2014.json").unlink()
    with pytest.raises(ValueError, match=r"expected instances_train2014\.json of COCO in it or beside it"):
        format_of(folder)


def test_grefcoco_no_target_and_several(tmp_path):
    folder = tiny.write_grefcoco(tmp_path)
    (sample,) = open_dataset(f"{folder}@val")
    (turn,) = sample.turns
    assert turn.kind == REFER_ABSENT
    assert [span.objects for span in turn.spans] == [(0, 1), ()]
    assert (phrases(sample, turn)["cup and person"] == (LEFT | RIGHT)).all()


def test_png(tmp_path):
    folder = tiny.write_png(tmp_path)
    samples = list(open_dataset(f"png={folder}"))
    assert len(samples) == 2
    (turn,) = samples[0].turns
    assert turn.kind == DESCRIBE
    assert turn.phrases == ("cup", "cups", "wall.")
    assert [span.tags for span in turn.spans] == [("thing", "singular"), ("thing", "plural"), ("stuff", "singular")]
    found = phrases(samples[0], turn)
    assert (found["cup"] == LEFT).all()
    assert (found["cups"] == (LEFT | RIGHT)).all()
    assert (found["wall."] == ~(LEFT | RIGHT)).all()
    assert turn.spans[1].start == turn.answer.index("cups"), "not the cup before"


def test_reasonseg(tmp_path):
    folder = tiny.write_reasonseg(tmp_path)
    asked, named = open_dataset(f"reasonseg={folder}")
    assert [turn.kind for turn in asked.turns] == [REASON, REASON]
    assert asked.turns[0].question == "What would one drink coffee from?"
    assert (asked.mask(asked.turns[0].spans[0].objects) == LEFT).all()
    assert (asked.mask(asked.ignored) == RIGHT).all()
    assert named.turns[0].answer == "the café’s cup."


@pytest.mark.parametrize("ending", ["json", "jsonl"])
def test_viscot(tmp_path, ending):
    """Parts are in shares of a square around the image."""
    sample, second = open_dataset(f"viscot={tiny.write_viscot(tmp_path, ending)}")
    (turn,) = sample.turns
    assert (turn.kind, turn.question, turn.answer) == (DETAIL, "What color is the cup?", "red")
    assert (sample.mask(turn.spans[0].objects) == LEFT).all()
    assert (second.mask(second.turns[0].spans[0].objects) == RIGHT.T).all(), "of an upright image, too"
    assert sample.image().shape[:2] == LEFT.shape


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("[0.1, 0.2, 0.3]", "expected a part \\[x0, y0, x1, y1\\], got"),
        ("[0.5, 0.5, 0.5, 0.9]", "expected a part inside the image, got"),
        ("[0.0, 0.0, 0.9, 0.05]", "expected a part inside the image, got"),
    ],
    ids=["three numbers", "empty", "beside the image"],
)
def test_a_bad_part_is_named(tmp_path, part, message):
    folder = tiny.write_viscot(tmp_path, part=part)
    with pytest.raises(BrokenSampleError, match=rf"a\.jpg: cannot be used \({message}"):
        open_dataset(str(folder))[0]


def test_gcg(tmp_path):
    folder = tiny.write_gcg(tmp_path)
    names = format_of(folder)[1]
    assert names == ("GranDf_HA_GCG_train", "OpenPsgGCG_train", "RefCOCOg_GCG_train", "flickr_mergedGT_GCG_train", "val")
    for split in names:
        sample = open_dataset(f"gcg={folder}@{split}")[0]
        (turn,) = sample.turns
        assert turn.answer == "A red cup stands beside a blue box.", split
        assert turn.phrases == ("red cup", "blue box"), split
        found = phrases(sample, turn)
        assert (found["red cup"] == LEFT).all() and (found["blue box"] == RIGHT).all(), split
        assert sample.image().shape[:2] == LEFT.shape
    (sample,) = open_dataset(f"{folder}@RefCOCOg_GCG_train")
    assert sample.left_out == ("'green dog': expected these words in the caption, got it without",)


def test_tabletop_is_one_split(tmp_path):
    folder = write_tiny_dataset(tmp_path / "table")
    assert [dataset.format for dataset in open_splits(str(folder))] == ["tabletop"]
    with pytest.raises(ValueError, match="expected no split: the folder is one, got val"):
        open_dataset(f"{folder}@val")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none", "expected a folder of data at none, got nothing there"),
        ("refcoco={}", "expected a data set of a known layout"),
        ("coco={}", "expected a format of tabletop, refcoco, png, reasonseg, gcg, viscot, got coco"),
    ],
)
def test_other_folders_are_refused(tmp_path, source, message):
    with pytest.raises(ValueError, match=message):
        open_dataset(source.format(tmp_path))


def test_a_split_has_to_be_named(tmp_path):
    folder = tiny.write_grefcoco(tmp_path)
    with pytest.raises(ValueError, match=r"expected one of its splits after @ \(val, testA\), got none"):
        open_dataset(str(folder))
    with pytest.raises(ValueError, match="expected a split of val, testA, got train"):
        open_dataset(f"{folder}@train")


class Attack:
    def __reduce__(self):
        return (os.system, ("echo run",))


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_names_code_is_refused(tmp_path, capsys, protocol):
    path = tmp_path / "refs(unc).p"
    path.write_bytes(pickle.dumps([Attack()], protocol=protocol))
    with pytest.raises(ValueError, match=r"expected a pickle of plain data, got one that names the code \w+\.system"):
        read_refs(path)
    assert main(["convert-data", str(tmp_path)]) == 2
    assert not (tmp_path / "refs(unc).json").exists()
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("content", [b"", b"\x80\x02]", pickle.dumps({"a": 1}), pickle.dumps([{"ref_id": 1}])])
def test_other_pickles_are_refused(tmp_path, content):
    path = tmp_path / "refs(unc).p"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="expected"):
        read_refs(path)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_pipes_and_folders_with_the_name_of_a_file(tmp_path, make):
    """Reading a pipe would wait for a writer."""
    folder = tiny.write_viscot(tmp_path)
    for path in (folder / "a.json", folder / "benchmark" / "b.json", tmp_path / "refs(unc).p"):
        make(path)
    signal.alarm(20)
    try:
        assert format_of(folder)[1] == ("gqa",)
        with pytest.raises(ValueError, match=r"expected a pickle at .*refs\(unc\)\.p, got no regular file"):
            convert_refs(tmp_path)
    finally:
        signal.alarm(0)


def test_python_2_text_is_read(tmp_path):
    refs = b"(lp0\n(dp1\nS'ref_id'\np2\nI1\nsS'ann_id'\np3\nI0\nsS'image_id'\np4\nI9\nsS'split'\np5\nS'val'\np6\n"
    refs += b"sS'sentences'\np7\n"
    refs += b"(lp8\n(dp9\nS'sent'\np10\nS'caf\\xc3\\xa9'\np11\nsasa."
    path = tmp_path / "refs(unc).p"
    path.write_bytes(refs)
    assert read_refs(path)[0]["sentences"][0]["sent"] == "café"


def test_broken_samples_are_named_and_skipped(tmp_path):
    folder = tiny.write_grefcoco(tmp_path)
    refs = json.loads((folder / "grefs(unc).json").read_text())
    refs[2]["split"] = "val"
    refs[2]["ann_id"] = [77]
    (folder / "grefs(unc).json").write_text(json.dumps(refs))
    dataset = open_dataset(str(folder))
    told = []
    assert visit_samples(dataset, lambda index, _: index, tell=told.append) == [0]
    assert len(told) == 1 and "COCO_train2014_000000000030.jpg" in told[0] and "77" in told[0]
    with pytest.raises(BrokenSampleError):
        dataset[1]


def test_masks_of_another_size_than_the_image(tmp_path):
    folder = tiny.write_refcoco(tmp_path)
    convert_refs(folder)
    coco = json.loads((folder / "instances.json").read_text())
    for image in coco["images"]:
        image["height"], image["width"] = image["width"], image["height"]
    coco["annotations"][1]["segmentation"] = [tiny.polygon(tiny.RIGHT)]
    (folder / "instances.json").write_text(json.dumps(coco))
    (sample,) = open_dataset(f"{folder}@train")
    with pytest.raises(BrokenSampleError, match=r"expected 80x60 \(height x width\), the size of its masks, got 60x80"):
        sample.image()


def test_check_counts_names_and_draws(tmp_path, capsys):
    folder = tiny.write_png(tmp_path)
    (folder / "images" / "val2017" / "000000000030.jpg").write_bytes(b"no image")
    findings = look_through(open_dataset(str(folder)))
    assert (findings.images, findings.broken, findings.phrases) == (1, 1, 3)
    assert findings.tags == {"thing": 2, "singular": 2, "stuff": 1, "plural": 1}
    out = tmp_path / "sheet.png"
    assert main(["data", "check", str(folder), "--out", str(out)]) == 1, "something is broken"
    printed = capsys.readouterr().out
    assert "png: " in printed and "broken images, skipped" in printed and "000000000030.jpg" in printed
    assert out.is_file()


def test_expressions_come_back_from_their_turn():
    expressions = [Expression("the cup", (1,)), Expression("dog", ()), Expression("St. Bernard", (0, 2))]
    turn = refer_turn(expressions)
    assert turn.kind == REFER_ABSENT
    assert expressions_of(turn) == expressions


def test_truth_is_drawn_as_an_answer(tmp_path):
    asked = open_dataset(str(tiny.write_reasonseg(tmp_path)))[0]
    answer = true_answer(asked, asked.turns[0])
    assert answer.text == asked.turns[0].question
    assert answer.phrases[0].box == tiny.LEFT
    assert np.array_equal(answer.phrases[0].mask, LEFT)


def test_table_top_scenes_in_every_published_layout(tmp_path):
    """The script that documents use: what its layouts say is what the scenes say."""
    layouts = loaded_script("write_published_layouts")
    source = open_dataset(str(write_tiny_dataset(tmp_path / "table")))
    layouts.write_layouts(tmp_path / "table", tmp_path / "out")
    for name, kind in (
        ("refcoco", "refcoco"), ("grefcoco", "refcoco"), ("panoptic_narrative_grounding", "png"), ("ReasonSeg", "reasonseg"),
        ("GranDf", "gcg"), ("viscot", "viscot"),
    ):  # fmt: skip
        dataset = open_dataset(f"{kind}={tmp_path / 'out' / name}@val")
        for index, sample in enumerate(dataset):
            assert not sample.left_out
            sample.image()
            if name not in ("ReasonSeg", "viscot"):
                truth = source[index]
                (listed,) = [turn for turn in truth.turns if turn.kind == "list"]
                found = [sample.mask(span.objects) for turn in sample.turns for span in turn.spans if span.objects]
                for span in listed.spans:
                    assert any((truth.mask(span.objects) == mask).all() for mask in found), name


def test_a_fingerprint_is_of_what_is_said_and_shown(tmp_path):
    folders = [tiny.write_reasonseg(tmp_path / name) for name in ("a", "b")]
    first, second = (open_dataset(str(folder)).fingerprint() for folder in folders)
    assert first == second, "it does not hang on the place"
    path = folders[1] / "val" / "a.json"
    path.write_bytes(path.read_bytes().replace(b"coffee", b"teapot"))
    said = open_dataset(str(folders[1])).fingerprint()
    assert said != first
    (folders[1] / "val" / "a.jpg").write_bytes(b"other")
    assert open_dataset(str(folders[1])).fingerprint() not in (first, said)
    path.unlink()
    os.mkfifo(path)  # opening it would wait for a writer
    (folders[1] / "val" / "b.json").write_text((folders[0] / "val" / "a.json").read_text())
    assert open_dataset(str(folders[1])).fingerprint() not in (first, said)
    table = write_tiny_dataset(tmp_path / "table")
    before = open_dataset(str(table)).fingerprint()
    questions = json.loads((table / "questions.json").read_text())
    questions[2]["turns"][0]["question"] = "What else?"
    (table / "questions.json").write_text(json.dumps(questions))
    assert open_dataset(str(table)).fingerprint() != before


def test_the_same_words_twice_in_a_narrative(tmp_path):
    folder = tiny.write_png(tmp_path)
    path = folder / "annotations" / "png_coco_val2017.json"
    narratives = json.loads(path.read_text())
    narratives[0]["caption"] = "A cup and a cup."
    narratives[0]["segments"] = [
        {**segment, "utterance": "cup"} for segment in narratives[0]["segments"] if segment["utterance"] in ("cup", "cups")
    ]
    path.write_text(json.dumps(narratives))
    (turn,) = open_dataset(str(folder))[0].turns
    assert [(span.start, span.end) for span in turn.spans] == [(2, 5), (12, 15)]
    narratives[0]["segments"].append({**narratives[0]["segments"][0], "utterance": "cup"})
    path.write_text(json.dumps(narratives))
    sample = open_dataset(str(folder))[0]
    assert sample.left_out == ("'cup': expected these words in the narrative, got it without",)


def test_an_object_of_several_expressions_is_one_object(tmp_path):
    folder = tiny.write_grefcoco(tmp_path)
    path = folder / "grefs(unc).json"
    refs = json.loads(path.read_text())
    refs.append({**refs[0], "ref_id": 4, "ann_id": [0], "sentences": [tiny.sentence(9, "the first")]})
    path.write_text(json.dumps(refs))
    (sample,) = open_dataset(f"{folder}@val")
    assert sample.names == ("cup", "person")
    assert [span.objects for span in sample.turns[0].spans] == [(0, 1), (), (0,)]


# --- masks that pycocotools would read past their end ------------------------------------------------------------------------

SIZE = [tiny.HEIGHT, tiny.WIDTH]
PIXELS = tiny.HEIGHT * tiny.WIDTH
BOX = tiny.polygon(tiny.LEFT)


def other_size():
    return {"size": SIZE, "counts": coco_mask.encode(np.ones((480, 640), np.uint8, order="F"))["counts"]}


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": SIZE, "counts": [100, 50]}, "expected counts of 4800 pixels together, got counts of 150"),
        ({"size": SIZE, "counts": [100, 50, PIXELS]}, "expected counts of 4800 pixels together, got counts of 4950"),
        ({"size": SIZE, "counts": [0, -100, PIXELS + 100]}, "got a negative count"),
        ({"size": SIZE, "counts": [0, 2**32, PIXELS]}, "got counts of 4294972096"),
        ({"size": SIZE, "counts": [0.5, PIXELS]}, "expected counts of an RLE, a list of whole numbers or a string"),
        ({"counts": [0, PIXELS]}, r"expected 60x80 \(height x width\), the size of the image, got None"),
        ({"size": [80, 60], "counts": [0, PIXELS]}, "the size of the image, got 80x60"),
        ({"size": SIZE}, "expected counts of an RLE, a list of whole numbers or a string"),
        (other_size(), "expected counts of 4800 pixels together, got counts of 307200"),
        ({"size": SIZE, "counts": tiny.compressed(tiny.LEFT)["counts"][:-3]}, "expected counts of 4800 pixels together, got"),
        ({"size": SIZE, "counts": "o" * 3}, "got characters that are none, or a part of them"),
        ({"size": SIZE, "counts": "ö"}, "got characters that are none, or a part of them"),
        ({"size": SIZE, "counts": "o" * 9 + "0"}, "got a number that is too long"),
        ({"size": SIZE, "counts": ""}, "got characters that are none, or a part of them"),
        ({"size": SIZE, "counts": [PIXELS]}, "expected at least one pixel of the image, got none"),
        ([[math.nan, *BOX[1:]]], "expected polygons of pairs of finite numbers"),
        ([[math.inf, *BOX[1:]]], "expected polygons of pairs of finite numbers"),
        ([[*BOX, 5]], "expected polygons of pairs of finite numbers"),
        ([["5", *BOX[1:]]], "expected polygons of pairs of finite numbers"),
        ([[x + 81 for x in BOX]], "expected at least one pixel of the image, got none"),
        ([[x + 500 for x in BOX]], "expected corners in an image of 60x80 .*, got numbers from 508 to 540"),
        ([[10**400, *BOX[1:]]], "expected corners in an image of 60x80"),
        (BOX, "expected polygons of at least three corners"),
        ([BOX, [1, 2, 3, 4]], "expected polygons of at least three corners"),
        ("polygon", "expected polygons or RLE, got str"),
    ],
)  # fmt: skip
def test_masks_are_checked(segmentation, message):
    with pytest.raises(ValueError, match=message):
        segmentation_rle(segmentation, *SIZE)


def test_counts_are_read_as_pycocotools_does():
    """Masks of noise and of stripes, whose counts have one digit and several and are both larger and smaller than before."""
    rng = np.random.default_rng(0)
    for share in (0.001, 0.02, 0.3, 0.9):
        mask = rng.random(SIZE) < share
        mask[:, rng.integers(80)] = True
        rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        as_text = {**rle, "counts": rle["counts"].decode()}
        for given in (rle, as_text):
            assert (coco_mask.decode(segmentation_rle(given, *SIZE)) == mask).all()
    assert (coco_mask.decode(segmentation_rle(tiny.uncompressed(tiny.LEFT), *SIZE)) == LEFT).all()


def test_sizes_that_no_image_has():
    for height, width in ((-5, 4), (2**20, 2**20), ("60", 80), (None, 80)):
        with pytest.raises(ValueError, match="image: expected height and width in pixels, got"):
            segmentation_rle([BOX], height, width)


# --- one bad entry costs itself ----------------------------------------------------------------------------------------------


def changed(path, change):
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def unknown_category(coco):
    coco["annotations"][0]["category_id"] = 99


def of_another_image(coco):
    coco["annotations"][0]["image_id"] = 30


def twice(coco):
    coco["annotations"].append(dict(coco["annotations"][0], segmentation=[tiny.polygon(tiny.RIGHT)]))


def outside(coco):
    coco["annotations"][0]["segmentation"] = [[x + 500 for x in BOX]]


def without_mask(coco):
    del coco["annotations"][0]["segmentation"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (unknown_category, "expected one category 99, got none or several"),
        (of_another_image, "expected one annotation 0 of image 9, got none or several"),
        (twice, "expected one annotation 0 of image 9, got none or several"),
        (outside, "expected corners in an image of 60x80 (height x width), got numbers from 508 to 540"),
        (without_mask, "expected an entry 'segmentation' of its annotation, got none"),
    ],
)
def test_a_bad_annotation_costs_its_own_expressions(tmp_path, change, message):
    folder = tiny.write_refcoco(tmp_path)
    convert_refs(folder)
    changed(folder / "instances.json", change)
    (sample,) = open_dataset(f"{folder}@train")
    (turn,) = sample.turns
    found = phrases(sample, turn)
    assert list(found) == ["blue person"] and (found["blue person"] == RIGHT).all() and sample.names == ("person",)
    assert len(sample.left_out) == 1 and message in sample.left_out[0]


def test_annotations_that_each_image_numbers_from_zero(tmp_path):
    folder = tiny.write_grefcoco(tmp_path)

    def renumber(coco):
        coco["annotations"] = [
            {"id": 0, "image_id": image, "category_id": 1, "segmentation": [tiny.polygon(box)]}
            for image, box in ((9, tiny.LEFT), (30, tiny.RIGHT))
        ]

    def refer(refs):
        refs[:] = [{**ref, "ann_id": [0], "split": "val"} for ref in (refs[0], refs[2])]

    changed(folder / "instances.json", renumber)
    changed(folder / "grefs(unc).json", refer)
    first, second = open_dataset(str(folder))
    assert (first.mask([0]) == LEFT).all() and (second.mask([0]) == RIGHT).all()


def test_images_with_one_number_are_named(tmp_path):
    folder = write_tiny_dataset(tmp_path / "table")
    changed(folder / "annotations.json", lambda coco: coco["images"][1].update(id=0))
    told = []
    assert visit_samples(open_dataset(str(folder)), lambda index, _: index, tell=told.append) == [2]
    assert len(told) == 2 and "000001.png" in told[1] and "got several images with id 0" in told[1]


def test_expressions_without_a_split_are_named(tmp_path, capsys):
    folder = tiny.write_grefcoco(tmp_path)
    changed(folder / "grefs(unc).json", lambda refs: refs[2].pop("split"))
    dataset, told = open_dataset(str(folder)), []
    assert visit_samples(dataset, lambda index, _: index, tell=told.append) == [1]
    assert len(told) == 1 and "expression 3: cannot be used (expected an expression with split, image_id, ann_id" in told[0]
    changed(folder / "grefs(unc).json", lambda refs: [ref.pop("split", None) for ref in refs])
    assert main(["data", "check", str(folder)]) == 2
    assert "expected a split of each expression, got none" in capsys.readouterr().err


def test_segments_of_an_unknown_category_are_left_out(tmp_path):
    folder = tiny.write_png(tmp_path)
    changed(folder / "annotations" / "panoptic_val2017.json", lambda panoptic: panoptic["categories"].pop())
    sample = open_dataset(str(folder))[0]
    assert sample.turns[0].phrases == ("cup", "cups")
    assert sample.left_out == ("'wall.': expected its segments with their categories in 000000000009.png, got it without some",)


def test_own_images_with_polygons_and_uncompressed_masks(tmp_path):
    """As labelling tools write them: without colours, too; a bad mask costs the phrases that name it."""
    folder = tmp_path / "own"
    tiny.write_image(folder / "images" / "a.png")
    boxes = [[tiny.polygon(tiny.LEFT)], tiny.uncompressed(tiny.RIGHT), {"size": SIZE, "counts": [7]}]
    annotations = [
        {"id": i, "image_id": 0, "category_id": 1, "segmentation": box, "attributes": {"color": "red"} if i else {}}
        for i, box in enumerate(boxes)
    ]
    answer = "I see a mug, a red mug and a bug."
    spans = [
        {"start": answer.index(words), "end": answer.index(words) + len(words), "annotation_ids": [i]}
        for i, words in enumerate(("mug", "red mug", "bug"))
    ] + [{"start": 20, "end": 99, "annotation_ids": [0]}]
    image = {"id": 0, "file_name": "a.png", "height": tiny.HEIGHT, "width": tiny.WIDTH}
    tiny.dump(
        folder / "annotations.json", {"images": [image], "annotations": annotations, "categories": [{"id": 1, "name": "mug"}]}
    )
    turn = {"kind": "list", "question": "What?", "answer": answer, "spans": spans}
    tiny.dump(folder / "questions.json", [{"image_id": 0, "turns": [turn]}])
    (sample,) = open_dataset(str(folder))
    found = phrases(sample, sample.turns[0])
    assert sample.names == ("mug", "red mug") and list(found) == ["mug", "red mug"]
    assert (found["mug"] == LEFT).all() and (found["red mug"] == RIGHT).all()
    assert [line.split(":")[0] for line in sample.left_out] == ["annotation 2", "'bug'", repr(answer)]
    assert main(["data", "check", str(folder), "--out", str(tmp_path / "sheet.png")]) == 0


# --- text and photographs as people store them -------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path, encoding):
    folder = tiny.write_reasonseg(tmp_path)
    for path in (folder / "val").glob("*.json"):
        path.write_bytes(path.read_bytes().decode("cp1252").encode(encoding))
    assert open_dataset(str(folder))[1].turns[0].answer == "the café’s cup."
    path = tiny.write_viscot(tmp_path, "jsonl") / "benchmark" / "gqa.jsonl"
    path.write_bytes(path.read_bytes().decode().replace("red", "red\\u2028").encode("utf-8-sig"))
    assert open_dataset(str(tmp_path / "viscot"))[0].turns[0].answer == "red"


@pytest.mark.parametrize("write", [tiny.write_reasonseg, tiny.write_viscot, tiny.write_gcg])
def test_masks_of_turned_photographs_are_upright(tmp_path, write):
    """EXIF orientation 6: stored on its side, labelled and read upright."""
    folder = write(tmp_path)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    for path in tmp_path.rglob("*.jpg"):
        upright = np.asarray(Image.open(path))
        Image.fromarray(np.rot90(upright).copy()).save(path, exif=exif, quality=95)
    source = f"{folder}@RefCOCOg_GCG_train" if write is tiny.write_gcg else str(folder)
    sample = open_dataset(source)[0]
    image, mask = sample.image(), sample.mask([0])
    assert image.shape[:2] == mask.shape == (tiny.HEIGHT, tiny.WIDTH)
    assert (image[mask][:, 0] > 150).mean() > 0.9, "the red box"


def test_letters_that_grow_in_lower_case(tmp_path):
    """İ (U+0130) is two characters in lower case: words behind it must stay what they are."""
    folder = tiny.write_gcg(tmp_path)
    path = folder / "annotations" / "train" / "RefCOCOg_GCG_train.json"
    changed(path, lambda entries: entries[0].update(caption="In İzmir a red cup stands beside a BLUE BOX."))
    (sample,) = open_dataset(f"{folder}@RefCOCOg_GCG_train")
    assert sample.turns[0].phrases == ("red cup", "BLUE BOX")
    folder = tiny.write_png(tmp_path)

    def moved(narratives):
        narratives[0]["caption"] = "İİİ " + narratives[0]["caption"]

    changed(folder / "annotations" / "png_coco_val2017.json", moved)
    assert open_dataset(str(folder))[0].turns[0].phrases == ("cup", "cups", "wall.")


# --- pickles that are small and ask for much ---------------------------------------------------------------------------------


def laughs():
    """A list of ten lists of ten lists, ...: ten references at each of 40 levels."""
    value = ["x"]
    for _ in range(40):
        value = [value] * 10
    return value


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x80\x02]r\xff\xff\xff\x00.", ""),  # an empty list that is number 2^24 - 1 of the table of references
        (pickle.dumps(laughs()), "stands for far more than the file holds"),
        (pickle.dumps([b"bytes"]), "holds something else than numbers, text, lists and dictionaries"),
        (pickle.dumps([{1, 2}]), "holds something else than numbers, text, lists and dictionaries"),
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00.", "holds something else than"),  # a bytearray of a terabyte
        (pickle.dumps([{"a": (1, 2, 3)}]), "holds something else than"),
        (pickle.dumps([{1: "a"}]), "has keys that are no text"),
        (pickle.dumps([10**5000]), "holds a number of more than 64 bits"),
    ],
    ids=["memo", "laughs", "bytes", "set", "bytearray", "tuple", "keys", "number"],
)  # fmt: skip
def test_pickles_are_bounded(tmp_path, capsys, content, message):
    path = tmp_path / "refs(unc).p"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        status = main(["convert-data", str(tmp_path)])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2**25
    assert status == (2 if message else 0)
    if message:
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{path}: expected a pickle of plain data, got one that {message}" in line


# --- the rule for errors of one sample ---------------------------------------------------------------------------------------


def test_whatever_one_sample_raises_is_that_samples(tmp_path):
    dataset, told = open_dataset(str(write_tiny_dataset(tmp_path / "table"))), []

    def use(index, sample):
        if index == 1:
            raise RuntimeError("absolute aspect ratio must be smaller than 200,\ngot 218.6")
        return index

    assert visit_samples(dataset, use, tell=told.append) == [0, 2]
    (line,) = told
    assert line.endswith("000001.png: cannot be used (absolute aspect ratio must be smaller than 200, got 218.6)")

    def failing(index, sample):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(RuntimeError, match="CUDA error"):
        visit_samples(dataset, failing, tell=pytest.fail)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"), MemoryFullError("chat: expected enough free memory"),
        OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EMFILE, "Too many open files"),
    ],
    ids=lambda error: f"{type(error).__name__}: {error}"[:30],
)  # fmt: skip
@pytest.mark.parametrize("inside", [False, True])
def test_what_the_machine_lacks_is_no_fault_of_a_sample(tmp_path, error, inside):
    dataset = open_dataset(str(write_tiny_dataset(tmp_path / "table", count=1)))

    def use(index, sample):
        if inside:
            raise ValueError("expected an image, got one that cannot be read") from error
        raise error

    with pytest.raises(ValueError if inside else type(error)) as raised:
        visit_samples(dataset, use, tell=pytest.fail)
    assert raised.type is not BrokenSampleError


def test_control_characters_of_a_data_set_stay_out_of_the_terminal(tmp_path, capsys):
    """Names, kinds and splits are the data set's words; a terminal would take an escape sequence as a command."""
    folder = write_tiny_dataset(tmp_path / "table")
    changed(folder / "annotations.json", lambda coco: coco["images"][1].update(file_name="\x1b[31m\0.png"))
    changed(folder / "questions.json", lambda asked: asked[0]["turns"][0].update(kind="list\x1b[2J"))
    assert main(["data", "check", str(folder), "--out", str(tmp_path / "sheet.png")]) == 1
    folder = tiny.write_grefcoco(tmp_path)
    changed(folder / "grefs(unc).json", lambda refs: [ref.update(split="v\x1b[2J", ref_id="\x1b[2J") for ref in refs])
    changed(folder / "grefs(unc).json", lambda refs: refs[0].update(ann_id=[9]))
    assert main(["data", "check", str(folder), "--out", str(tmp_path / "sheet.png"), "--force"]) == 0
    said = capsys.readouterr().out
    assert not any(ord(sign) < 32 for line in said.split("\n") for sign in line)
    assert "broken: " in said and "turns: list [2J" in said and "split v [2J" in said and "left out: " in said


def test_strips_are_checked_and_drawn(strip_data, tmp_path, capsys):
    """No model reads them here, so no shape is refused; the sheet of samples stays small."""
    out = tmp_path / "sheet.png"
    assert main(["data", "check", str(strip_data), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^images +4$", printed, re.MULTILINE) and "images of 5x1093 (height x width)" in printed
    with Image.open(out) as sheet:
        assert max(sheet.size) < 5000


WILD = (None, -1, 2**40, 10**400, 0.5, math.nan, "", "\0", "9" * 300, [], {}, [[1, 2, 3]], {"size": SIZE, "counts": "0"})


def wild(value, rng):
    """Replace, delete or double one entry anywhere inside."""
    at, key = value, None
    while isinstance(at, dict | list) and at:
        inside, key = at, rng.choice(list(at) if isinstance(at, dict) else range(len(at)))
        at = at[key]
        if rng.random() < 0.3:
            break
    kind = rng.random()
    if kind < 0.2:
        del inside[key]
    elif kind < 0.4 and isinstance(inside, list):
        inside.append(inside[key])
    else:
        inside[key] = copy.deepcopy(rng.choice(WILD))


@pytest.mark.parametrize(
    "write",
    [
        tiny.write_mdetr, tiny.write_grefcoco, tiny.write_png, tiny.write_reasonseg, tiny.write_viscot, tiny.write_gcg,
        write_tiny_dataset,
    ],
    ids=lambda write: write.__name__,
)  # fmt: skip
def test_wild_entries_are_refused_in_one_line(tmp_path, monkeypatch, write):
    monkeypatch.setenv("TQDM_DISABLE", "1")
    folder, rng = write(tmp_path / "data"), random.Random(0)
    for _ in range(60):
        path = rng.choice(sorted((tmp_path / "data").rglob("*.json")))
        before = path.read_bytes()
        value = json.loads(before.decode("cp1252"))
        wild(value, rng)
        path.write_text(json.dumps(value))
        try:
            for dataset in open_splits(str(folder)):
                look_through(dataset)
                dataset.fingerprint()
        except ValueError as error:
            assert "\n" not in str(error)
        path.write_bytes(before)
