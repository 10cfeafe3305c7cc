"""Boxes that LMMs say, and the comparison with asking for them."""

import json

import numpy as np
import pytest
from tiny_dataset import write_tiny_dataset

from flmm_cli.main import main
from flmm_core.data.tabletop import read_dataset
from flmm_core.evaluation.baseline import BoxPrompter, comparison_rows, run_comparison
from flmm_core.evaluation.metrics import Figure
from flmm_core.families.boxes import (
    JSON_PIXELS,
    JSON_ROWS_FIRST,
    JSON_THOUSANDTHS,
    LOCATION_TOKENS,
    SHARES,
    THOUSANDTHS,
)
from flmm_core.types import ImageGeometry

WIDE = ImageGeometry(
    image_height=300, image_width=400, padded_height=560, padded_width=560, offset_y=70, offset_x=0, inner_height=420,
    inner_width=560, grid_height=20, grid_width=20,
)  # fmt: skip
"""An image that was resized by 1.4 and padded above and below."""


@pytest.mark.parametrize(
    ("boxes", "answer", "expected"),
    [
        (JSON_PIXELS, '```json\n[{"bbox_2d": [140, 210, 280, 350], "label": "red cup"}]\n```', (100, 100, 200, 200)),
        (JSON_THOUSANDTHS, '[{"label": "red cup", "bbox_2d": [250, 500, 500, 1000]}]', (100, 150, 200, 300)),
        (THOUSANDTHS, "red cup[[250, 500, 500, 1000]]", (100, 150, 200, 300)),
        (LOCATION_TOKENS, "<loc0512><loc0256><loc1024><loc0512> red cup", (100, 150, 200, 300)),
        (JSON_ROWS_FIRST, '{"box_2d": [500, 250, 1000, 500], "label": "red cup"}', (100, 150, 200, 300)),
        # The square of a 400 x 300 image begins 50 pixels above it.
        (SHARES, "[0.25, 0.5, 0.50, 0.75]", (100, 150, 200, 250)),
    ],
)
def test_each_format(boxes, answer, expected):
    ((label, box),) = boxes.parse(answer, WIDE)
    assert box == pytest.approx(expected, abs=0.5)
    assert label in ("red cup", "")
    assert "the mug" in boxes.ask("the mug")


def test_several_boxes_keep_their_words():
    answer = 'I see [{"bbox_2d": [0, 0, 10, 10], "label": "a"}, {"bbox_2d": [5, 5, 20, 30], "label": "b {c}"}]'
    assert [label for label, _ in JSON_THOUSANDTHS.parse(answer, WIDE)] == ["a", "b {c}"]
    plain = "the red cup [0.1, 0.2, 0.3, 0.4] and the box (0.5, 0.5, 0.9, 0.9)"
    first = '[{"label": "x", "bbox_2d": [0, 0, 10, 10]}, {"label": "y", "bbox_2d": [5, 5, 20, 30]}]'
    assert [label for label, _ in JSON_THOUSANDTHS.parse(first, WIDE)] == ["x", "y"]
    assert [label for label, _ in SHARES.parse(plain, WIDE)] == ["the red cup", "and the box"]


@pytest.mark.parametrize(
    "answer", ["", "There is none.", "[1, 2, 3]", "[900, 900, 100, 100]", "[-5, -5, 0, 0]", '{"bbox_2d": []}']
)
def test_no_box(answer):
    assert JSON_THOUSANDTHS.parse(answer, WIDE) == []


def test_boxes_are_cut_to_the_image():
    ((_, box),) = JSON_THOUSANDTHS.parse("[-100, 500, 2000, 4000]", WIDE)
    assert box == (0.0, 150.0, 400.0, 300.0)


@pytest.fixture(scope="module")
def pipeline():
    from flmm_core.pipeline import GroundingPipeline

    return GroundingPipeline.from_pretrained(device="cpu")


@pytest.fixture(scope="module")
def prompter(pipeline):
    from flmm_core.sam.checkpoints import load_sam

    return BoxPrompter(pipeline, load_sam(pipeline.config.sam))


@pytest.fixture(scope="module")
def scene():
    from flmm_sim.renderer import TabletopRenderer

    with TabletopRenderer() as renderer:
        return renderer.sample(seed=1)


def test_sam_makes_masks_of_boxes(pipeline, prompter, scene, monkeypatch):
    """Boxes go to SAM in its own frame, one prompt each; the shipped SAM never learnt from boxes alone, as real ones did."""
    image = pipeline.encode(scene.image)
    seen, decode = [], prompter._refiner.decoder_network

    def watched(embedding, boxes):
        seen.append(boxes)
        return decode(embedding, boxes=boxes)

    monkeypatch.setattr(prompter._refiner, "decoder_network", watched)
    boxes = [(0.0, 0.0, 320.0, 240.0), (160.0, 120.0, 240.0, 180.0)]
    masks = [prompter.masks(image, [box]) for box in boxes]
    together = prompter.masks(image, boxes)
    assert together.shape == (240, 320)
    assert (together == np.any(masks, axis=0)).mean() > 0.999
    scale = 256 / 320
    assert seen[-1].tolist() == [pytest.approx([scale * number for number in box]) for box in boxes]
    assert not prompter.masks(image, []).any()


def test_an_lmm_that_says_true_boxes_is_compared(tmp_path, prompter, monkeypatch):
    """What the LMM would say is put into its mouth: figures are those of its boxes."""
    folder = write_tiny_dataset(tmp_path / "set", count=2)
    dataset = read_dataset(folder)
    asked = []

    def said(image, text):
        asked.append(text)
        return text, [("red mug", (4.0, 4.0, 20.0, 20.0))] if "absent" not in text else []

    monkeypatch.setattr(prompter, "said", said)
    told = []
    found = run_comparison(prompter, dataset, questions=1, tell=told.append)
    assert len(found) == 2 and not told
    sample = dataset[0]
    phrases = [words for turn in sample.turns if turn.kind.startswith("refer") for words in turn.phrases]
    assert [case.words for case in found[0].ours.cases] == phrases == [case.words for case in found[0].boxes.cases]
    for case, true in zip(found[0].boxes.cases, found[0].oracle.cases, strict=True):
        assert case.masked, "it says a box for everything"
        assert true.masked == case.there
    rows = {row.name: row for row in comparison_rows(found)}
    assert rows["expressions: no-target accuracy"].second.value == 0.0
    assert rows["expressions: no-target accuracy"].oracle.value == 1.0
    assert rows["answers: the same words as without masks"].ours.value == 1.0
    assert rows["answers: the same words as without masks"].together.value == 0.0
    assert {"expressions: seconds for each", "answers: seconds for each"} <= set(rows)
    assert any(text.endswith("give its bounding box, too.") for text in asked)


def test_which_is_better():
    from flmm_core.evaluation.baseline import Row

    def figure(value):
        return Figure(value, value, value, 1)

    assert Row("a", figure(0.8), figure(0.7), figure(0.9)).better == "boxes"
    assert Row("a", figure(0.8), figure(0.7), figure(0.6)).better == "ours"
    assert Row("a", figure(0.8), figure(0.7), lower=True).better == "boxes"
    assert Row("a", figure(0.6), figure(0.7), lower=True).better == "ours"
    assert Row("a", figure(0.6), figure(0.6)).better == "even"
    assert Row("a", figure(0.6), oracle=figure(0.9)).better == "-", "the truth is no rival"


def test_command(tmp_path, capsys):
    folder = write_tiny_dataset(tmp_path / "set", count=2)
    out, table = tmp_path / "out.json", tmp_path / "out.md"
    assert main(["eval", "baseline", str(folder), "--questions", "1", "--json", str(out), "--markdown", str(table)]) == 0
    printed = capsys.readouterr().out
    assert "expressions: cIoU" in printed and "better" in printed and "bounding box coordinate" in printed
    rows = json.loads(out.read_text())["rows"]
    assert {"figure", "ours", "second", "together", "oracle", "better"} == set(rows[0])
    assert table.read_text().startswith("| figure | ours | ")
