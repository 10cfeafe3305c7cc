"""Renders random images of the table with ground truth, off screen, in one reused MuJoCo model."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self

import cv2
import numpy as np

from flmm_sim.layout import FILL, CameraView, Placement, check_objects, choose_camera, choose_objects, place_objects
from flmm_sim.offscreen import mujoco, open_gl
from flmm_sim.scene import Scene, SceneObject
from flmm_sim.world import HIDDEN_GROUP, POOL_SCALES, SHOWN_GROUP, TABLE_HALF, Instance, build_world

_RGB = {
    "red": (0.80, 0.05, 0.06),
    "orange": (0.98, 0.45, 0.03),
    "yellow": (0.98, 0.86, 0.08),
    "green": (0.10, 0.55, 0.16),
    "blue": (0.08, 0.24, 0.82),
    "purple": (0.46, 0.15, 0.67),
    "pink": (0.98, 0.52, 0.72),
    "white": (0.96, 0.96, 0.96),
    "black": (0.06, 0.06, 0.065),
}
_LIGHT_TONE, _DARK_TONE = (0.92, 0.91, 0.88, 1.0), (0.30, 0.27, 0.25, 1.0)
_LEAST_PIXELS = 150 / (240 * 320)
"""Least visible share of the image for an object."""
_LEAST_SHARE = 0.35
_LAYOUTS = 60
"""Layouts that are tried for a list of objects."""


class TabletopRenderer:
    """Samples scenes of the table.

    Use it in the thread that made it, and close it, or use it in a ``with`` statement.

    Args:
        height, width: size of the images, pixels.

    Raises:
        RenderingUnavailableError: neither EGL nor OSMesa works.
    """

    def __init__(self, height: int = 240, width: int = 320) -> None:
        if height < 32 or width < 32:
            raise ValueError(f"expected images of at least 32x32 pixels, got height {height} and width {width}")
        self.height, self.width = height, width
        self._gl: Any = open_gl(height, width)
        self._world = build_world(height, width)
        model = self._world.model
        self._context: Any = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
        self._scene = mujoco.MjvScene(model, maxgeom=200)
        for flag in ("REFLECTION", "SKYBOX", "HAZE", "FOG"):
            self._scene.flags[getattr(mujoco.mjtRndFlag, f"mjRND_{flag}")] = 0
        self._option = mujoco.MjvOption()
        self._option.geomgroup[HIDDEN_GROUP] = 0
        self._camera = mujoco.MjvCamera()
        self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, self._world.camera
        self._rect = mujoco.MjrRect(0, 0, width, height)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Free the OpenGL context; a second call does nothing."""
        if self._gl is not None:
            self._context.free()
            self._gl.free()
            self._gl = None

    def sample(self, seed: int, objects: Sequence[tuple[str, str]] | None = None) -> Scene:
        """One scene; the same seed and objects give the same scene.

        Args:
            seed: seed of all random choices.
            objects: (kind, color) pairs to show; 2 to 7 random ones by default.

        Raises:
            ValueError: a kind or colour is unknown, or the objects do not fit on the table.
        """
        if self._gl is None:
            raise RuntimeError("the renderer is closed")
        rng = np.random.default_rng(seed)
        most = len(POOL_SCALES)
        wanted = choose_objects(rng, most) if objects is None else check_objects(objects, most)
        instances = self._pick_instances(rng, [kind for kind, _ in wanted])
        self._gl.make_current()
        self._dress(rng, instances, [color for _, color in wanted])
        for _ in range(_LAYOUTS):
            view = choose_camera(rng, self.height, self.width, len(wanted))
            bodies = [(instance.kind, instance.points) for instance in instances]
            placements = place_objects(rng, bodies, view, TABLE_HALF, _LEAST_SHARE + 0.1)
            if placements is None:
                continue
            self._arrange(view, instances, placements)
            depth, masks = self._render_truth(instances)
            if self._clear(masks, instances, placements):
                return self._scene_of(wanted, instances, placements, view, self._render_color(), depth, masks)
        raise ValueError(f"no clear view of {len(wanted)} objects after {_LAYOUTS} layouts: expected fewer or smaller objects")

    def _pick_instances(self, rng: np.random.Generator, kinds: Sequence[str]) -> list[Instance]:
        """Different instances of the pool for the kinds, in random sizes."""
        shuffled = {kind: iter(rng.permutation(len(self._world.pool[kind]))) for kind in dict.fromkeys(kinds)}
        return [self._world.pool[kind][int(next(shuffled[kind]))] for kind in kinds]

    def _dress(self, rng: np.random.Generator, instances: Sequence[Instance], colors: Sequence[str]) -> None:
        """Show only these instances, in their colours, and choose surfaces and lights."""
        model = self._world.model
        for pool in self._world.pool.values():
            for instance in pool:
                model.geom_group[list(instance.geoms)] = HIDDEN_GROUP
        for instance, color in zip(instances, colors, strict=True):
            model.geom_group[list(instance.geoms)] = SHOWN_GROUP
            model.geom_rgba[list(instance.body_geoms)] = _jittered(rng, color)
            model.geom_rgba[list(instance.contrast_geoms)] = _DARK_TONE if color in ("white", "yellow") else _LIGHT_TONE
        table, floor, wall = rng.choice(self._world.surface_materials, 3, replace=False)
        self._paint(rng, (self._world.table_geom,), table)
        self._paint(rng, (self._world.floor_geom,), floor)
        self._paint(rng, self._world.wall_geoms, wall)
        for material in (table, floor, wall):
            model.mat_texrepeat[material] = rng.uniform(1.2, 3.5)
        self._light(rng)

    def _paint(self, rng: np.random.Generator, geoms: Iterable[int], material: int) -> None:
        tint = rng.uniform(0.82, 1.05) * rng.uniform(0.96, 1.04, 3)
        for geom in geoms:
            self._world.model.geom_matid[geom] = material
            self._world.model.geom_rgba[geom] = np.append(np.minimum(tint, 1.0), 1.0)

    def _light(self, rng: np.random.Generator) -> None:
        """A main light with shadows, sometimes a second one, and ambient light."""
        model = self._world.model
        ambient, main = rng.uniform(0.38, 0.52), rng.uniform(0.40, 0.58)
        second = rng.uniform(0.1, 0.25) if rng.random() < 0.5 else 0.0
        model.vis.headlight.ambient[:] = ambient
        model.vis.headlight.diffuse[:] = rng.uniform(0.05, 0.15)
        for light, strength in zip(self._world.lights, (main, second), strict=True):
            azimuth, elevation = rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(40, 80))
            away = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
            model.light_pos[light], model.light_dir[light] = 1.5 * away, -away
            model.light_diffuse[light] = strength * rng.uniform(0.96, 1.0, 3)
            model.light_active[light] = strength > 0

    def _arrange(self, view: CameraView, instances: Sequence[Instance], placements: Sequence[Placement]) -> None:
        """Move camera and objects, and refresh the list of what is drawn."""
        model, data = self._world.model, self._world.data
        for instance, placement in zip(instances, placements, strict=True):
            data.mocap_pos[instance.mocap_id] = placement.origin
            mujoco.mju_mat2Quat(data.mocap_quat[instance.mocap_id], placement.rotation.ravel())
        camera = self._world.camera
        model.cam_pos[camera], model.cam_fovy[camera] = view.pose[:3, 3], view.fovy
        mujoco.mju_mat2Quat(model.cam_quat[camera], (view.pose[:3, :3] * [1.0, -1.0, -1.0]).ravel())
        mujoco.mj_kinematics(model, data)
        mujoco.mj_camlight(model, data)
        everything = mujoco.mjtCatBit.mjCAT_ALL
        mujoco.mjv_updateScene(model, data, self._option, None, self._camera, everything, self._scene)

    def _render_color(self) -> np.ndarray:
        image = np.empty((self.height, self.width, 3), np.uint8)
        mujoco.mjr_render(self._rect, self._scene, self._context)
        mujoco.mjr_readPixels(image, None, self._rect, self._context)
        return np.ascontiguousarray(image[::-1])

    def _render_truth(self, instances: Sequence[Instance]) -> tuple[np.ndarray, list[np.ndarray]]:
        """Depth ``[H, W]`` in metres and a mask ``[H, W]`` for each instance, in one pass without light."""
        flags = self._scene.flags
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 1
        codes, raw = np.empty((self.height, self.width, 3), np.uint8), np.empty((self.height, self.width), np.float32)
        mujoco.mjr_render(self._rect, self._scene, self._context)
        mujoco.mjr_readPixels(codes, raw, self._rect, self._context)
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = 0
        owner = {geom: index + 1 for index, instance in enumerate(instances) for geom in instance.geoms}
        table = np.zeros(256, np.uint8)
        for drawn in self._scene.geoms[: self._scene.ngeom]:
            table[drawn.segid + 1] = owner.get(drawn.objid, 0) if drawn.objtype == mujoco.mjtObj.mjOBJ_GEOM else 0
        labels = table[codes[::-1, :, 0]]
        near, far = self._world.model.vis.map.znear, self._world.model.vis.map.zfar
        depth = near * far / (near + raw[::-1] * (far - near))
        return depth.astype(np.float32), [labels == index + 1 for index in range(len(instances))]

    def _clear(self, masks: Sequence[np.ndarray], instances: Sequence[Instance], placements: Sequence[Placement]) -> bool:
        """Whether every object shows enough pixels."""
        least = _LEAST_PIXELS * self.height * self.width
        for mask, instance, placement in zip(masks, instances, placements, strict=True):
            whole = cv2.contourArea(placement.outline) * FILL.get(instance.kind, 0.95)
            if np.count_nonzero(mask) < max(least, _LEAST_SHARE * whole):
                return False
        return True

    def _scene_of(
        self,
        wanted: Sequence[tuple[str, str]],
        instances: Sequence[Instance],
        placements: Sequence[Placement],
        view: CameraView,
        image: np.ndarray,
        depth: np.ndarray,
        masks: Sequence[np.ndarray],
    ) -> Scene:
        objects = tuple(
            SceneObject(
                kind=kind,
                color=color,
                position=(float(placement.centre[0]), float(placement.centre[1]), 0.0),
                right=float(view.right @ placement.centre),
                away=float(view.away @ placement.centre),
                mask=mask,
                scale=instance.scale,
                pose=_pose(placement),
            )
            for (kind, color), instance, placement, mask in zip(wanted, instances, placements, masks, strict=True)
        )
        return Scene(image=image, depth=depth, objects=objects, intrinsics=view.intrinsics, camera_pose=view.pose)


def _pose(placement: Placement) -> np.ndarray:
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = placement.rotation, placement.origin
    return pose


def _jittered(rng: np.random.Generator, color: str) -> np.ndarray:
    """RGBA near a named colour: hue within 4 degrees, brightness within 8 percent."""
    base = np.array(_RGB[color], np.float32) * np.float32(rng.uniform(0.92, 1.04))
    hue, saturation, value = cv2.cvtColor(np.minimum(base, 1.0)[None, None], cv2.COLOR_RGB2HSV)[0, 0]
    turned = np.array([[[(hue + rng.uniform(-4, 4)) % 360, saturation, value]]], np.float32)
    return np.append(cv2.cvtColor(turned, cv2.COLOR_HSV2RGB)[0, 0], 1.0)
