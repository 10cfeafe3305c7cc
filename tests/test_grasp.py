"""Grasps from above, and the simulated gripper that tries them."""

from dataclasses import replace

import numpy as np
import pytest

from flmm_core.spatial.grasp import CLEARANCE, MARGIN, REACH, NoGraspError, top_grasp
from flmm_core.spatial.location import Location

UP = np.array([0.0, -1.0, 0.0])
"""Of a table that the camera looks at from the side."""


def standing(length, width, height):
    """A thing of a size, one metre before the camera; its length points to the right."""
    sizes = np.array([length, width, height])
    axes = np.stack([[1.0, 0, 0], [0, 0, -1.0], UP], axis=1)
    order = np.argsort(-sizes)
    center = np.array([0.1, 0.2, 1.0])
    return Location(np.empty((0, 3), np.float32), center, sizes, center, axes[:, order], sizes[order], 1.0, UP)


@pytest.mark.parametrize(
    ("size", "height"),
    [((0.16, 0.06, 0.05), 0.025), ((0.06, 0.05, 0.2), 0.2 - REACH), ((0.08, 0.04, 0.01), CLEARANCE)],
    ids=["box", "bottle", "flat"],
)
def test_a_grasp_is_across_the_narrow_side_at_half_the_height_within_reach(size, height):
    location = standing(*size)
    grasp = top_grasp(location, 0.11)
    assert grasp.approach == pytest.approx(-UP) and abs(grasp.closing @ UP) < 1e-9
    assert abs(grasp.closing[2]) == pytest.approx(1.0), "the narrow side points away from the camera"
    assert grasp.opening == pytest.approx(size[1] + MARGIN)
    foot = location.box_center - size[2] / 2 * UP
    assert grasp.position == pytest.approx(foot + height * UP)
    assert np.linalg.det(grasp.rotation) == pytest.approx(1.0) and grasp.rotation[:, 2] == pytest.approx(-UP)


def test_what_cannot_be_taken_says_why():
    with pytest.raises(NoGraspError, match=r"expected a thing narrower than 0.094 m, got 0.100 m"):
        top_grasp(standing(0.2, 0.1, 0.05), 0.11)
    with pytest.raises(NoGraspError, match="expected a thing that stands on a flat surface"):
        top_grasp(replace(standing(0.1, 0.05, 0.05), up=None), 0.11)


@pytest.fixture(scope="module")
def scene(open_renderer):
    with open_renderer() as renderer:
        return renderer.sample(5, [("can", "red"), ("ball", "blue")])


def from_above(scene, target, height, shift=0.0):
    from flmm_sim.gripper import try_pick

    x, y, _ = scene.objects[target].position
    down = np.stack([[1.0, 0, 0], [0, -1.0, 0], [0, 0, -1.0]], axis=1)
    return try_pick(scene, target, np.array([x + shift, y, height]), down, 0.1)


def test_the_simulated_gripper_lifts_what_it_closes_on(scene):
    for target, height in ((0, 0.05), (1, 0.035)):
        pick = from_above(scene, target, height)
        assert pick.lifted and 0.12 < pick.risen < 0.18
        assert pick.moved_others < 0.002


def test_a_grasp_beside_or_above_the_thing_lifts_nothing(scene):
    assert not from_above(scene, 0, 0.05, shift=0.12).lifted
    assert not from_above(scene, 0, 0.25).lifted


def test_words_become_a_lifted_thing(open_renderer):
    from flmm_demo.picking import LIFTED, attempts, record, rows
    from flmm_tabletop import load_pipeline

    pipeline = load_pipeline()
    open_renderer().close()
    found = attempts(pipeline, 6, seed=0)
    assert len(found) == 6 and sum(attempt.outcome == LIFTED for attempt in found) >= 2, [a.outcome for a in found]
    lifted = next(attempt for attempt in found if attempt.outcome == LIFTED)
    assert lifted.lifted_by > 0.1 and lifted.centre_error < 0.03 and lifted.command.startswith("pick up the ")
    assert record(found)["attempts"] == 6 and rows(found)[0][0] == LIFTED
