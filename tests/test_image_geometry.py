"""Resize, pad and un-pad against the rule written out by hand."""

import numpy as np
import pytest
import torch
from PIL import Image

from flmm_core.images.geometry import long_side_geometry, mask_box, place_in_frame, unpad, unpadded_range


def geometry(height, width, frame=336, grid=24):
    return long_side_geometry(image_height=height, image_width=width, frame=frame, grid_height=grid, grid_width=grid)


@pytest.mark.parametrize(
    ("size", "inner", "offset"),
    [
        ((213, 320), (223, 336), (56, 0)),  # 223.65 truncates; the odd pixel of padding goes below
        ((300, 190), (336, 212), (0, 62)),
        ((336, 336), (336, 336), (0, 0)),
        ((1, 1), (336, 336), (0, 0)),
        ((1, 5000), (1, 336), (167, 0)),  # never less than one pixel
    ],
)
def test_long_side(size, inner, offset):
    found = geometry(*size)
    assert (found.inner_height, found.inner_width) == inner
    assert (found.offset_y, found.offset_x) == offset


@pytest.mark.parametrize(
    ("offset", "inner", "padded", "size", "expected"),
    [
        (56, 223, 336, 64, (10, 52)),  # int(10.67), int(42.48 + 0.5)
        (62, 212, 336, 64, (11, 51)),  # int(11.81), int(40.38 + 0.5)
        (0, 336, 336, 64, (0, 64)),
        (55, 226, 336, 64, (10, 53)),  # int(10.48), int(43.05 + 0.5)
        (167, 1, 336, 24, (11, 12)),  # a thin image keeps one cell
        (0, 335, 336, 64, (0, 64)),
    ],
)
def test_unpadding_rule(offset, inner, padded, size, expected):
    assert unpadded_range(offset, inner, padded, size) == expected


def test_unpadding_always_leaves_cells_inside_the_map():
    for frame in (64, 192, 336):
        for short in range(1, frame + 1, 7):
            found = geometry(short, frame, frame=frame)
            for size in (12, 37, 64):
                start, end = unpadded_range(found.offset_y, found.inner_height, frame, size)
                assert 0 <= start < end <= size


def test_unpad_keeps_the_image():
    found = geometry(213, 320)
    maps = torch.arange(64 * 64.0).reshape(1, 64, 64)
    assert torch.equal(unpad(maps, found), maps[:, 10:52, :])


def test_place_in_frame():
    found = geometry(2, 4, frame=8)
    frame = place_in_frame(Image.new("RGB", (4, 2), (9, 9, 9)), found, background=(1, 2, 3), resample=3)
    assert frame.shape == (8, 8, 3)
    assert (frame[:2] == (1, 2, 3)).all() and (frame[2:6] == 9).all() and (frame[6:] == (1, 2, 3)).all()


def test_mask_box():
    mask = np.zeros((6, 9), bool)
    assert mask_box(torch.from_numpy(mask)).tolist() == [0, 0, 0, 0]
    mask[2, 3] = mask[4, 7] = True
    assert mask_box(torch.from_numpy(mask)).tolist() == [3, 2, 8, 5]
