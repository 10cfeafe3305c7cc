"""Things on a surface: their whole size and middle, from what one side shows of them."""

import numpy as np
import pytest

from flmm_core.spatial.location import locate
from flmm_core.spatial.support import surfaces_around

HEIGHT, WIDTH, FOCAL = 240, 320, 400.0
K = np.array([[FOCAL, 0.0, 160.0], [0.0, FOCAL, 120.0], [0.0, 0.0, 1.0]])
TILT = np.radians(50.0)
"""How far the camera looks down."""
DISTANCE = 0.9
UP = np.array([0.0, -np.cos(TILT), -np.sin(TILT)])
"""Of the table, in the optical frame."""
AWAY = np.array([0.0, -np.sin(TILT), np.cos(TILT)])
RIGHT = np.array([1.0, 0.0, 0.0])
TABLE = np.array([0.0, 0.0, DISTANCE])
"""The point of the table that the camera looks at."""


def rays():
    rows, columns = np.mgrid[:HEIGHT, :WIDTH].astype(float)
    return np.stack([(columns - 160.0) / FOCAL, (rows - 120.0) / FOCAL, np.ones_like(rows)], axis=2)


def table_depth():
    return (TABLE @ UP) / (rays() @ UP)


def seen(solid):
    """Depth and mask of a solid on the table: the first point of each ray inside of it, by small steps."""
    depth, mask = table_depth(), np.zeros((HEIGHT, WIDTH), bool)
    along = np.stack([rays() @ axis for axis in (RIGHT, AWAY, UP)])
    start = np.array([TABLE @ axis for axis in (RIGHT, AWAY, UP)])[:, None, None]
    found = np.full((HEIGHT, WIDTH), np.inf)
    for above in np.arange(0.3, 0.0, -0.001):  # up to the table, along the optical axis
        z = depth - above
        found = np.where(solid(*(along * z - start)) & np.isinf(found), z, found)
    mask = found < depth
    return np.where(mask, found, depth).astype(np.float32), mask


def ball(radius=0.04):
    return lambda x, y, z: x**2 + y**2 + (z - radius) ** 2 <= radius**2


def can(radius=0.035, height=0.11):
    return lambda x, y, z: (x**2 + y**2 <= radius**2) & (z >= 0) & (z <= height)


def box(length=0.16, width=0.06, height=0.05, turn=30.0):
    cosine, sine = np.cos(np.radians(turn)), np.sin(np.radians(turn))

    def inside(x, y, z):
        along, across = cosine * x + sine * y, -sine * x + cosine * y
        return (abs(along) <= length / 2) & (abs(across) <= width / 2) & (z >= 0) & (z <= height)

    return inside


def on_table(point):
    """Right, away and up from the point of the table that the camera looks at."""
    offset = point - TABLE
    return np.array([offset @ RIGHT, offset @ AWAY, offset @ UP])


@pytest.mark.parametrize(
    ("solid", "size"),
    [
        (ball(), (0.08, 0.08, 0.08)),
        (can(), (0.11, 0.07, 0.07)),
        (box(), (0.16, 0.06, 0.05)),
        (box(turn=-70), (0.16, 0.06, 0.05)),
    ],
    ids=["ball", "can", "box", "box turned away"],
)
def test_the_middle_and_the_size_of_the_whole(solid, size):
    depth, mask = seen(solid)
    found = locate(mask, depth, K)
    assert found.up is not None
    right, away, _ = on_table(found.centroid)
    assert abs(right) < 0.003 and abs(away) < 0.008
    assert found.box_size == pytest.approx(size, abs=0.015)
    assert np.linalg.det(found.box_axes) == pytest.approx(1.0)
    assert max(abs(found.box_axes.T @ UP)) == pytest.approx(1.0, abs=1e-3), "the box stands upright"
    assert np.array_equal(found.centroid, found.box_center)
    visible = on_table(found.points.mean(axis=0).astype(float))
    assert visible[1] < -0.005, "what is visible lies nearer to the camera than the middle"


def test_a_turned_box_is_turned():
    found = locate(*reversed(seen(box(turn=30.0))), K)
    longest = found.box_axes[:, 0]
    expected = np.cos(np.radians(30)) * RIGHT + np.sin(np.radians(30)) * AWAY
    assert abs(longest @ expected) > 0.995


def test_noise_holes_and_a_mask_that_is_too_large_do_no_harm():
    rng = np.random.default_rng(1)
    depth, mask = seen(can())
    depth = depth + rng.normal(0, 0.002, depth.shape).astype(np.float32)
    depth[rng.random(depth.shape) < 0.1] = np.nan
    wide = np.array([[np.roll(np.roll(mask, dy, 0), dx, 1) for dx in (-2, 0, 2)] for dy in (-2, 0, 2)]).any(axis=(0, 1))
    found = locate(wide, depth, K)
    assert found.up is not None
    right, away, _ = on_table(found.centroid)
    assert abs(right) < 0.006 and abs(away) < 0.012


def test_what_is_held_in_the_air_does_not_stand():
    depth, mask = seen(lambda x, y, z: (x**2 + y**2 <= 0.03**2) & (z >= 0.2) & (z <= 0.25))
    found = locate(mask, depth, K)
    assert found.up is None and found.centroid == pytest.approx(found.points.mean(axis=0), abs=1e-5)


def test_a_drawing_on_the_table_lies_on_it():
    mask = np.zeros((HEIGHT, WIDTH), bool)
    mask[100:140, 140:200] = True
    found = locate(mask, table_depth().astype(np.float32), K)
    assert found.up is None and abs(on_table(found.centroid)[2]) < 1e-3


def test_the_surface():
    depth, mask = seen(can())
    surface = next(surfaces_around(mask, depth, rays()))
    assert surface.normal == pytest.approx(UP, abs=1e-3)
    assert surface.heights(TABLE[None]) == pytest.approx([0.0], abs=1e-3)
    assert not list(surfaces_around(np.ones_like(mask), depth, rays())), "nothing is around it"
    clutter = np.random.default_rng(0).uniform(0.5, 1.5, depth.shape).astype(np.float32)
    assert not list(surfaces_around(mask, clutter, rays()))
    assert not list(surfaces_around(mask, np.full_like(depth, np.nan), rays()))


def test_a_thing_at_the_edge_of_the_table_stands_on_it_and_not_on_the_floor():
    depth, mask = seen(can())
    floor = (TABLE - 0.7 * UP) @ UP / (rays() @ UP)
    beyond = ((rays() * table_depth()[..., None] - TABLE) @ AWAY > -0.02) & ~mask
    found = locate(mask, np.where(beyond, floor, depth).astype(np.float32), K)
    assert found.up == pytest.approx(UP, abs=1e-3) and abs(on_table(found.centroid)[1]) < 0.01


def test_a_thing_that_fills_the_image():
    found = locate(np.ones((HEIGHT, WIDTH), bool), np.full((HEIGHT, WIDTH), 0.5, np.float32), K)
    assert found.up is None and found.centroid[2] == pytest.approx(0.5)
