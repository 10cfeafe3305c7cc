"""Where a thing is in space: exact on planes and boxes, and not led astray by holes, bleeding edges and noise."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from flmm_core.spatial.camera import CameraError, Distortion, rays
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


@pytest.mark.parametrize("focal", [1e-310, 1e-306, 1e-30, 7.9, 160_001.0, 1e300], ids=str)
@pytest.mark.parametrize("axis", [0, 1])
def test_a_focal_length_that_no_camera_has_is_refused(focal, axis):
    """Beyond the range of numbers the decompositions of matrices never end."""
    wrong = K.copy()
    wrong[axis, axis] = focal
    with pytest.raises(CameraError, match=r"the focal length does not fit the image: expected fx, fy of 8 to 160000 pixels"):
        locate(rectangle(), flat(), wrong)


@pytest.mark.parametrize(("row", "value"), [(0, 1e300), (0, -1e300), (1, 2000.0)])
def test_a_principal_point_that_no_camera_has_is_refused(row, value):
    wrong = K.copy()
    wrong[row, 2] = value
    with pytest.raises(CameraError, match="the principal point does not fit the image: expected cx, cy within 1600 pixels"):
        locate(rectangle(), flat(), wrong)


@pytest.mark.parametrize("value", [0.0, -200.0, np.nan, np.inf], ids=str)
def test_intrinsics_without_a_focal_length_are_refused(value):
    wrong = K.copy()
    wrong[0, 0] = value
    with pytest.raises(CameraError, match="the camera info has no focal length: expected fx, fy > 0, got"):
        locate(rectangle(), flat(), wrong)


@pytest.mark.parametrize("depth", [1e-45, 1e-38, 1e-5, 1e5, 1e30, 3e38], ids=str)
@pytest.mark.parametrize("share", [0.4, 1.0])
def test_a_depth_that_nothing_measures_is_none(depth, share):
    strange = flat()
    strange[np.random.default_rng(0).random(strange.shape) < share] = depth
    if share == 1.0:
        with pytest.raises(NoDepthError, match="got 0 of 2400"):
            locate(rectangle(), strange, K)
    else:
        assert locate(rectangle(), strange, K).centroid[2] == pytest.approx(0.8)


def test_a_location_is_finite():
    found = locate(rectangle(), flat(), K)
    with np.errstate(all="ignore"), pytest.raises(NoDepthError, match="expected a location of finite numbers"):
        found.moved(np.eye(3), np.array([1e300, 0.0, 0.0]))
    with pytest.raises(NoDepthError, match="expected a location of finite numbers"):
        replace(found, box_size=np.array([1.0, np.nan, 1.0]))


DISTORTIONS = {
    "plumb_bob": [-0.3, 0.1, 0.001, -0.002, 0.01],
    "rational_polynomial": [0.1, 0.02, 0.001, -0.002, 0.003, 0.12, 0.03, 0.001],
    "equidistant": [0.1, -0.05, 0.01, -0.002],
}


@pytest.mark.parametrize("model", DISTORTIONS)
def test_the_rays_of_a_distorted_image(model):
    """Each ray is seen by OpenCV's camera at its pixel."""
    distortion = Distortion(model, np.array(DISTORTIONS[model]))
    found = rays((60, 80), 70, 50, K, distortion)
    project = cv2.fisheye.projectPoints if model == "equidistant" else cv2.projectPoints
    still = np.zeros(3)
    seen, _ = project(found.reshape(-1, 1, 3), still, still, K, distortion.coefficients)
    rows, columns = np.mgrid[50:110, 70:150]
    assert np.abs(seen.reshape(60, 80, 2) - np.stack([columns, rows], 2)).max() < 0.01
    straight = rays((60, 80), 70, 50, K, None)
    assert np.abs(found - straight).max() > 0.001


def test_a_thing_at_the_edge_of_a_distorted_image_is_where_it_is():
    distortion = Distortion("plumb_bob", np.array(DISTORTIONS["plumb_bob"]))
    mask = rectangle(5, 25, 5, 25)
    found, wrong = locate(mask, flat(), K, distortion), locate(mask, flat(), K)
    ray = rays((1, 1), 15, 15, K, distortion)[0, 0]
    assert np.abs(found.centroid - 0.8 * ray).max() < 0.004 < np.abs(wrong.centroid - 0.8 * ray).max()


def test_pixels_that_a_distortion_does_not_reach_have_no_location():
    folded = Distortion("plumb_bob", np.array([-5.0, 0.0, 0.0, 0.0, 0.0]))
    with pytest.raises(NoDepthError, match="too little depth"):
        locate(rectangle(0, 20, 0, 20), flat(), K, folded)
    for coefficients in ([1e300] * 5, [1e300, 0, 0, 0, 0]):
        with np.errstate(all="ignore"), pytest.raises(NoDepthError, match="too little depth"):
            locate(rectangle(0, 20, 0, 20), flat(), K, Distortion("plumb_bob", np.array(coefficients)))


@pytest.mark.parametrize(
    ("model", "coefficients", "reason"),
    [
        ("pillow", [0.1], "unsupported distortion model: expected one of plumb_bob, rational_polynomial, equid"),
        ("plumb_bob", [0.1] * 8, "distortion of model plumb_bob: expected 4 or 5 finite coefficients, got "),
        ("equidistant", [0.1, 0.2, np.nan, 0.1], "distortion of model equidistant: expected 4 finite coefficients, got "),
    ],
)
def test_distortions_that_are_not_known_are_refused(model, coefficients, reason):
    with pytest.raises(CameraError, match=reason):
        Distortion(model, np.array(coefficients))


def test_the_quaternion_of_a_box():
    geometry = pytest.importorskip(
        "flmm_ros.conversions.geometry", reason="the messages of flmm_ros are not built: `make setup`"
    )
    for axes in Rotation.random(50, random_state=0).as_matrix():
        assert np.abs(Rotation.from_quat(geometry._quaternion(axes)).as_matrix() - axes).max() < 1e-9
