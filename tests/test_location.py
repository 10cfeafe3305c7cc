"""Where a thing is in space: exact on planes and boxes, and not led astray by holes, bleeding edges and noise."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from flmm_core.spatial.location import NoDepthError, locate

HEIGHT, WIDTH = 120, 160
K = np.array([[200.0, 0.0, 80.0], [0.0, 210.0, 60.0], [0.0, 0.0, 1.0]])


def rectangle(top=40, bottom=80, left=60, right=120):
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[top:bottom, left:right] = True
    return mask


def flat(z=0.8):
    return np.full((HEIGHT, WIDTH), z, np.float32)


def test_a_flat_thing_is_where_its_middle_is():
    found = locate(rectangle(), flat(0.8), K)
    middle = np.array([(89.5 - 80) / 200 * 0.8, (59.5 - 60) / 210 * 0.8, 0.8])
    assert np.abs(found.centroid - middle).max() < 1e-6
    assert np.abs(found.box_center - middle).max() < 1e-6
    assert found.depth_fraction == 1.0
    assert len(found.points) == 36 * 56  # two pixels of each edge are left out
    width, height = 55 / 200 * 0.8, 35 / 210 * 0.8
    assert found.extent == pytest.approx([width * 0.96, height * 0.96, 0], abs=0.8 / 200 * 1.5)  # whole pixels
    assert found.box_size == pytest.approx(found.extent, rel=1e-3, abs=1e-6)


def test_the_box_follows_a_turned_thing():
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    turned = Rotation.from_euler("z", 30, degrees=True).as_matrix()[:2, :2]
    along, across = turned.T @ np.stack([columns.ravel() - 80, rows.ravel() - 60])
    mask = ((np.abs(along) < 40) & (np.abs(across) < 10)).reshape(HEIGHT, WIDTH)
    square = np.array([[200.0, 0.0, 80.0], [0.0, 200.0, 60.0], [0.0, 0.0, 1.0]])
    found = locate(mask, flat(1.0), square)
    assert np.linalg.det(found.box_axes) == pytest.approx(1.0)
    assert np.abs(found.box_axes[:2, 0]) == pytest.approx(turned[:, 0], abs=0.02)
    assert found.box_size[:2] == pytest.approx([0.96 * 75 / 200, 0.96 * 15 / 200], abs=1 / 200)  # whole pixels


@pytest.mark.parametrize("hole", [0.0, np.nan, np.inf, -1.0], ids=str)
def test_holes_are_no_depth(hole):
    depth = flat()
    depth[40:60] = hole
    found = locate(rectangle(), depth, K)
    assert found.depth_fraction == 0.5
    assert found.centroid[2] == pytest.approx(0.8)


def test_a_background_that_bleeds_in_and_flying_pixels_are_left_out():
    depth, mask = flat(0.8), rectangle()
    depth[~rectangle(43, 80, 63, 120)] = 1.5  # the mask is three pixels too large on two sides
    noise = np.random.default_rng(0)
    flying = mask & (noise.random(mask.shape) < 0.1)
    depth[flying] = noise.uniform(0.3, 3.0, flying.sum())
    found = locate(mask, depth, K)
    assert np.abs(found.points[:, 2] - 0.8).max() <= 0.02
    assert found.centroid == pytest.approx([(90 - 80) / 200 * 0.8, 0.5 / 210 * 0.8, 0.8], abs=0.004)


def test_thin_things_keep_their_edges():
    found = locate(rectangle(50, 52, 20, 140), flat(), K)
    assert len(found.points) == 240


@pytest.mark.parametrize("known", [0, 11])
def test_too_little_depth_is_said(known):
    depth = np.zeros((HEIGHT, WIDTH), np.float32)
    depth[40, 60 : 60 + known] = 1.0
    with pytest.raises(NoDepthError, match=f"expected at least 12 pixels of the mask with one, got {known} of 2400"):
        locate(rectangle(), depth, K)


def test_an_empty_mask_has_no_place():
    with pytest.raises(NoDepthError, match="got 0 of 0"):
        locate(np.zeros((HEIGHT, WIDTH), bool), flat(), K)


def test_sizes_must_fit():
    with pytest.raises(ValueError, match="depth: expected 120x160 as the mask, got 60x80"):
        locate(rectangle(), flat()[::2, ::2], K)


def test_the_quaternion_of_a_box():
    geometry = pytest.importorskip(
        "flmm_ros.conversions.geometry", reason="the messages of flmm_ros are not built: `make setup`"
    )
    for axes in Rotation.random(50, random_state=0).as_matrix():
        assert np.abs(Rotation.from_quat(geometry._quaternion(axes)).as_matrix() - axes).max() < 1e-9
