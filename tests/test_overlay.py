"""Overlays: what is drawn where, and that nothing a model may say breaks the drawing."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from flmm_core.drawing.overlay import contact_sheet, draw_overlay
from flmm_core.drawing.style import PALETTE, color_of
from flmm_core.types import GroundedAnswer, GroundedPhrase

GRAY = np.full((240, 320, 3), 120, np.uint8)


def phrase(text, start, box, size=(240, 320), score=0.9):
    mask = np.zeros(size, bool)
    x0, y0, x1, y1 = box
    mask[y0:y1, x0:x1] = True
    return GroundedPhrase(text, start, start + len(text), torch.from_numpy(mask), box if mask.any() else (0, 0, 0, 0), score)


def answer(text, *phrases, size=(240, 320)):
    return GroundedAnswer(text, tuple(phrases), *size)


def test_masks_are_tinted_where_they_are():
    drawn = draw_overlay(GRAY, answer("The red mug is here.", phrase("red mug", 4, (100, 80, 200, 160))), command="where?")
    assert drawn.dtype == np.uint8 and drawn.shape[1:] == (960, 3) and drawn.shape[0] > 720
    inside, outside = drawn[3 * 140, 3 * 150].astype(int), drawn[3 * 20, 3 * 20].astype(int)
    assert np.abs(outside - 120).max() <= 1
    expected = 120 + 0.32 * (np.array(color_of(0)) - 120)
    assert np.abs(inside - expected).max() <= 3
    assert (drawn[3 * 80 - 1 : 3 * 80 + 2, 3 * 120] == color_of(0)).all(axis=-1).any()  # contour


def test_a_label_stands_beside_its_mask_and_off_the_others():
    boxes = ((100, 80, 160, 160), (180, 80, 240, 160))
    drawn = draw_overlay(GRAY, answer("a b", *(phrase("thing", 0, box) for box in boxes)))
    for index, (x0, y0, x1, _) in enumerate(boxes):
        above = drawn[3 * (y0 - 16) : 3 * (y0 - 4), 3 * x0 : 3 * x1]
        assert (above == color_of(index)).all(axis=-1).sum() > 200


def test_images_of_full_size_are_not_enlarged():
    big = np.zeros((720, 1280, 3), np.uint8)
    drawn = draw_overlay(big, answer("Yes.", size=(720, 1280)))
    assert drawn.shape[1] == 1280 and drawn.shape[0] > 720


def test_what_is_not_there_is_grey_and_has_no_swatch():
    mug = phrase("mug", 0, (100, 80, 200, 160))
    gone = replace(phrase("can", 8, (0, 0, 0, 0)), absent=True, presence=0.1)
    panel = draw_overlay(GRAY, answer("mug and can", mug, gone))[720:]
    assert (panel == color_of(0)).all(axis=-1).sum() > 100 and not (panel == color_of(1)).all(axis=-1).any()
    there = draw_overlay(GRAY, answer("mug and can", mug, replace(gone, absent=False)))[720:]
    assert (there == color_of(1)).all(axis=-1).sum() > 100


def test_a_fault_stands_below_the_answer():
    plain = draw_overlay(GRAY, answer("a mug"), command="what?")
    marked = draw_overlay(GRAY, answer("a mug"), command="what?", fault="WRONG, expected: a can")
    alert = (255, 120, 100)
    assert (marked == alert).all(axis=-1).any() and not (plain == alert).all(axis=-1).any()
    assert marked.shape[0] > plain.shape[0] and (marked[: plain.shape[0] - 20] == plain[:-20]).all()


@pytest.mark.parametrize(
    "text",
    ["", "word " * 500, "x" * 3000, "line\nbreak\x00\x1b[31m", "柠檬 🍋 ليمون", "a\tb"],
    ids=["empty", "many words", "long word", "control", "other scripts", "tab"],
)
def test_any_text_can_be_drawn(text):
    things = [phrase(text[:20], 0, (0, 0, 320, 240)), phrase("", 0, (5, 5, 6, 6)), phrase("gone", 0, (3, 3, 3, 3))]
    drawn = draw_overlay(GRAY, answer(text, *things), command=text, details=[text[:30]])
    assert drawn.shape[1] == 960
    assert draw_overlay(GRAY, answer(""), command=text, fault=text or "no").shape[1] == 960


@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (17, 33)])
def test_any_size_can_be_drawn(size):
    thing = phrase("thing", 0, (0, 0, size[1], size[0]), size)
    drawn = draw_overlay(np.zeros((*size, 3), np.uint8), answer("thing", thing, size=size), command="what?")
    assert drawn.shape[1] >= 480


def test_more_phrases_than_colours():
    things = [phrase(f"t{i}", 0, (i, i, i + 20, i + 20)) for i in range(3 * len(PALETTE))]
    draw_overlay(GRAY, answer("t0 t1", *things))
    assert color_of(len(PALETTE)) == PALETTE[0]


def test_image_of_another_size_is_refused():
    with pytest.raises(ValueError, match=r"expected an image of 240x320 .*, got 10x20"):
        draw_overlay(np.zeros((10, 20, 3), np.uint8), answer("x"))


def test_contact_sheet():
    tiles = [np.full((90, 120, 3), value, np.uint8) for value in (10, 20, 30, 40)]
    sheet = contact_sheet(tiles, columns=3, tile_width=240)
    assert sheet.shape == (2 * 180 + 3 * 12, 3 * 252 + 12, 3)
    assert (sheet[12 + 90, 12 + 120] == 10).all() and (sheet[12 + 180 + 12 + 90, 12 + 120] == 40).all()
    with pytest.raises(ValueError, match="at least one image"):
        contact_sheet([])


OVERLAY = """
import sys
from pathlib import Path
import numpy as np
import torch
from flmm_core.drawing.overlay import draw_overlay
from flmm_core.types import GroundedAnswer, GroundedPhrase

def kilobytes(entry):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(entry + ":"))

def draw(height, width):
    masks = [np.ones((height, width), bool), np.zeros((height, width), bool)]
    masks[1][: height // 2 + 1, : width // 2 + 1] = True
    phrases = [GroundedPhrase(f"t{i}", 0, 2, torch.from_numpy(masks[i % 2]), (0, 0, width, height), 0.5) for i in range(4)]
    answer = GroundedAnswer("word " * 200, tuple(phrases), height, width)
    return draw_overlay(np.full((height, width, 3), 100, np.uint8), answer, command="what is on the table? " * 20).shape

draw(240, 320)
for height, width in [(1, 30000), (1000000, 1), (50, 20000), (2160, 3840)]:
    Path("/proc/self/clear_refs").write_text("5")
    before = kilobytes("VmRSS")
    shape = draw(height, width)
    print(height, width, shape, (kilobytes("VmHWM") - before) * 1024)
"""


def test_memory_stays_within_the_stated_bound():
    """20 bytes for each pixel, one for each pixel of each mask, and 64 MB (docs/reference.md, grounding_node)."""
    run = subprocess.run([sys.executable, "-c", OVERLAY], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr[-2000:]
    for line in run.stdout.splitlines():
        height, width, *_, taken = line.split()
        assert int(taken) < (20 + 4) * int(height) * int(width) + 64e6, line


def test_text_is_as_large_beside_any_image():
    """Of a panorama the text is that of an image of usual shape; of thin images the long side is reduced."""
    for size, expected in (((50, 20000), 8192), ((20000, 50), 480), ((720, 5000), 5000)):
        drawn = draw_overlay(np.zeros((*size, 3), np.uint8), answer("Yes, a mug.", size=size), command="is there a mug?")
        assert drawn.shape[1] == expected
        assert drawn.shape[0] < max(8192, size[0] if min(size) >= 480 else 0) + 400


def test_many_phrases_have_a_legend_of_bounded_length():
    things = [phrase(f"thing {i}", 0, (0, 0, 9, 9)) for i in range(80)]
    assert draw_overlay(GRAY, answer("things", *things), fault="wrong " * 5000).shape[0] < 720 + 1800


def test_a_contact_sheet_of_tall_images_is_bounded():
    assert contact_sheet([np.zeros((30000, 2, 3), np.uint8)], tile_width=640).shape[0] == 4 * 640 + 24
