"""The simulated images: same seed same scene, and truth that agrees with the image."""

from __future__ import annotations

import ctypes.util
import os
import subprocess
import sys
from collections import Counter

import cv2
import numpy as np
import pytest

from flmm_core.spatial.location import locate
from flmm_sim.layout import choose_objects
from flmm_sim.objects import make_parts
from flmm_sim.renderer import TabletopRenderer
from flmm_sim.scene import COLORS, KIND_COLORS, KINDS, Scene

SEEDS = range(12)
FLAT_KINDS = ("lemon", "banana", "cube", "ball", "can", "plate", "box")
"""Kinds whose visible middle lies near their centre."""


@pytest.fixture(scope="module")
def scenes(renderer: TabletopRenderer) -> list[Scene]:
    return [renderer.sample(seed) for seed in SEEDS]


def _mean_pixel(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.nonzero(mask)
    return np.array([columns.mean(), rows.mean()])


def test_same_seed_gives_same_scene(renderer: TabletopRenderer, scenes: list[Scene]) -> None:
    again = renderer.sample(3)
    assert np.array_equal(again.image, scenes[3].image)
    assert np.array_equal(again.depth, scenes[3].depth)
    assert np.array_equal(again.camera_pose, scenes[3].camera_pose)
    assert [(o.name, o.position) for o in again.objects] == [(o.name, o.position) for o in scenes[3].objects]
    assert not np.array_equal(scenes[3].image, scenes[4].image)


def test_a_second_renderer_gives_the_same_scene(renderer: TabletopRenderer, scenes: list[Scene]) -> None:
    with TabletopRenderer() as other:
        assert np.array_equal(other.sample(5).image, scenes[5].image)
    assert np.array_equal(renderer.sample(5).image, scenes[5].image)


def test_shapes_and_types(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert scene.image.shape == (240, 320, 3) and scene.image.dtype == np.uint8
        assert scene.depth.shape == (240, 320) and scene.depth.dtype == np.float32
        assert 2 <= len(scene.objects) <= 7
        assert all(o.mask.shape == (240, 320) and o.mask.dtype == bool for o in scene.objects)


def test_masks_are_disjoint_and_large_enough(scenes: list[Scene]) -> None:
    for scene in scenes:
        assert sum(o.mask.astype(int) for o in scene.objects).max() == 1
        assert min(np.count_nonzero(o.mask) for o in scene.objects) >= 150


def test_depth_back_projects_onto_the_objects(scenes: list[Scene]) -> None:
    for scene in scenes:
        points = _table_points(scene)
        for o in scene.objects:
            seen = points[o.mask]
            assert seen[:, 2].min() > -0.01 and seen[:, 2].max() < 0.25, o.name
            middle = np.median(seen[:, :2], axis=0)
            assert np.linalg.norm(middle - o.position[:2]) < 0.12, o.name


def test_depth_of_a_lone_object_gives_its_position(renderer: TabletopRenderer) -> None:
    for seed, kind in enumerate(FLAT_KINDS):
        scene = renderer.sample(seed, [(kind, "yellow")])
        (thing,) = scene.objects
        seen = _table_points(scene)[thing.mask]
        assert np.linalg.norm(seen[:, :2].mean(axis=0) - thing.position[:2]) < 0.05, kind


def test_depth_of_the_bare_table_is_its_plane(scenes: list[Scene]) -> None:
    for scene in scenes:
        bare = ~np.any([o.mask for o in scene.objects], axis=0)
        points = _table_points(scene)[bare]
        inside = points[np.abs(points[:, :2]).max(axis=1) < 0.3]
        assert len(inside) > 1000
        assert np.percentile(np.abs(inside[:, 2]), 99) < 0.002


def test_view_frame_agrees_with_the_table_frame_and_the_image(scenes: list[Scene]) -> None:
    compared = 0
    for scene in scenes:
        for one in scene.objects:
            assert np.isclose(np.hypot(one.right, one.away), np.hypot(*one.position[:2]))
            for other in scene.objects:
                share = (one.right - other.right) / max(abs(one.away - other.away), 0.05)
                if one.right - other.right > 0.12 and share > 1.5:
                    assert _mean_pixel(one.mask)[0] > _mean_pixel(other.mask)[0]
                    compared += 1
    assert compared > 10


def test_objects_are_those_asked_for(renderer: TabletopRenderer) -> None:
    wanted = [("mug", "red"), ("mug", "red"), ("banana", "yellow"), ("pan", "black")]
    scene = renderer.sample(1, wanted)
    assert [(o.kind, o.color) for o in scene.objects] == wanted


@pytest.mark.parametrize(
    ("color", "channels"),
    [("red", (1, 0, 0)), ("green", (0, 1, 0)), ("blue", (0, 0, 1)), ("white", (1, 1, 1)), ("black", (0, 0, 0))],
)
def test_colors_show_in_the_image(renderer: TabletopRenderer, color: str, channels: tuple[int, int, int]) -> None:
    scene = renderer.sample(7, [("ball", color)])
    shown = np.median(scene.image[scene.objects[0].mask], axis=0)
    assert tuple((shown > 85).astype(int)) == channels, shown


def test_unknown_kind_names_the_allowed_ones(renderer: TabletopRenderer) -> None:
    with pytest.raises(ValueError, match="unknown kind 'teapot': expected one of mug, bowl"):
        renderer.sample(0, [("teapot", "red")])
    with pytest.raises(ValueError, match="expected one of mug"):
        make_parts("teapot")


def test_unknown_color_names_the_allowed_ones(renderer: TabletopRenderer) -> None:
    with pytest.raises(ValueError, match="unknown color 'mauve' for kind 'mug': expected one of red, orange"):
        renderer.sample(0, [("mug", "mauve")])
    with pytest.raises(ValueError, match="unknown color 'red' for kind 'lemon': expected one of yellow, green"):
        renderer.sample(0, [("lemon", "red")])


def test_bad_requests_say_what_was_expected(renderer: TabletopRenderer) -> None:
    with pytest.raises(ValueError, match="expected at most 4, got 5"):
        renderer.sample(0, [("ball", "red")] * 5)
    with pytest.raises(ValueError, match="expected at least one object, got none"):
        renderer.sample(0, [])
    with pytest.raises(ValueError, match="got height 8 and width 320"):
        TabletopRenderer(height=8)


def test_a_closed_renderer_says_so(renderer: TabletopRenderer) -> None:
    other = TabletopRenderer(64, 96)
    other.close()
    other.close()
    with pytest.raises(RuntimeError, match="closed"):
        other.sample(0)


@pytest.mark.parametrize("asked", ["", "egl"])
def test_a_machine_without_opengl_gets_one_clear_line(asked: str) -> None:
    script = "from flmm_sim.renderer import TabletopRenderer; TabletopRenderer()"
    broken = {"__EGL_VENDOR_LIBRARY_FILENAMES": "/nonexistent.json", "PYTHONPATH": os.pathsep.join(sys.path)}
    if not asked and ctypes.util.find_library("OSMesa"):
        pytest.skip("OSMesa is installed here")
    environment = {**os.environ, **broken, "MUJOCO_GL": asked}
    environment.pop("PYOPENGL_PLATFORM", None)
    ended = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    line = ended.stderr.strip().splitlines()[-1]
    assert "RenderingUnavailableError: cannot draw without a window: tried egl" in line
    assert "install libegl1" in line


def test_choice_of_objects() -> None:
    chosen = [choose_objects(np.random.default_rng(seed), 4) for seed in range(600)]
    assert {len(pairs) for pairs in chosen} == set(range(2, 8))
    assert {kind for pairs in chosen for kind, _ in pairs} == set(KINDS)
    assert {color for pairs in chosen for _, color in pairs} == set(COLORS)
    assert all(color in KIND_COLORS.get(kind, COLORS) for pairs in chosen for kind, color in pairs)
    repeated = np.mean([max(Counter(pairs).values()) > 1 for pairs in chosen])
    assert 0.05 < repeated < 0.16
    for position in (0, 1):
        shared = np.mean([max(Counter(pair[position] for pair in pairs).values()) > 1 for pairs in chosen])
        assert shared > 0.4


@pytest.mark.parametrize("kind", KINDS)
def test_meshes_face_outwards_and_stand_on_the_table(kind: str) -> None:
    parts = make_parts(kind)
    points = np.concatenate([part.vertices for part in parts])
    assert abs(points[:, 2].min()) < 1e-9
    assert np.allclose(points[:, :2].min(axis=0), -points[:, :2].max(axis=0))
    assert 0.05 < np.ptp(points, axis=0).max() < 0.26
    for part in parts:
        p, q, r = (part.vertices[part.faces[:, i]] for i in range(3))
        assert np.einsum("fi,fi->f", p, np.cross(q, r)).sum() > 0, "the enclosed volume is positive"


def _table_points(scene: Scene) -> np.ndarray:
    """Every pixel's point in the table frame, ``[H, W, 3]`` metres."""
    rows, columns = np.indices(scene.depth.shape)
    rays = np.stack([columns, rows, np.ones_like(rows)], -1) @ np.linalg.inv(scene.intrinsics).T
    points = rays * scene.depth[..., None]
    return points @ scene.camera_pose[:3, :3].T + scene.camera_pose[:3, 3]


def _seen_badly(scene: Scene, mask: np.ndarray, noise: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A mask that is two pixels too large, and depth with noise of 3 mm and 5 % holes."""
    wide = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    depth = scene.depth + noise.normal(0, 0.003, scene.depth.shape).astype(np.float32)
    depth[noise.random(depth.shape) < 0.05] = np.nan
    return wide, depth


@pytest.mark.parametrize("badly", [False, True], ids=["exact", "noisy"])
def test_things_are_found_within_a_centimetre(scenes: list[Scene], badly: bool) -> None:
    """Of the middle of their footprint, across the table, though the camera sees one side of them alone."""
    noise = np.random.default_rng(0)
    errors: list[float] = []
    standing = 0
    for scene in scenes:
        for thing in scene.objects:
            if thing.mask.sum() < 100:
                continue
            mask, depth = _seen_badly(scene, thing.mask, noise) if badly else (thing.mask, scene.depth)
            found = locate(mask, depth, scene.intrinsics)
            standing += found.up is not None
            middle = (scene.camera_pose @ np.append(found.centroid, 1.0))[:2]
            errors.append(float(np.linalg.norm(middle - np.array(thing.position[:2]))))
    assert len(errors) > 20 and standing > 0.9 * len(errors)
    assert np.median(errors) < 0.010, np.percentile(errors, [50, 90, 100])


def test_a_scene_knows_the_pose_of_its_things(scenes: list[Scene]) -> None:
    for scene in scenes[:3]:
        points = _table_points(scene)
        for thing in scene.objects:
            vertices = np.concatenate([part.vertices for part in make_parts(thing.kind, thing.scale)])
            solid = vertices @ thing.pose[:3, :3].T + thing.pose[:3, 3]
            assert abs(solid[:, 2].min()) < 0.003, "it stands on the table, up to the hull that was placed"
            low, high = solid.min(axis=0) - 0.004, solid.max(axis=0) + 0.004
            assert ((points[thing.mask] > low) & (points[thing.mask] < high)).all(axis=1).mean() > 0.99


def test_a_model_may_be_loaded_after_rendering(renderer: TabletopRenderer) -> None:
    """Two copies of LLVM, PyTorch's and Mesa's, do not bear every order."""
    code = (
        "from flmm_sim.renderer import TabletopRenderer\nTabletopRenderer().sample(1)\nimport torchvision.models\nprint('fine')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr[-500:]
