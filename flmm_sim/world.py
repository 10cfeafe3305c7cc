"""One MuJoCo model that holds a pool of objects of every kind, a table in a room, two lights and a camera.

The model is compiled once. A scene shows some of the pool's instances, moves them as mocap bodies, and changes colours,
materials, lights and the camera in place.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import ConvexHull

from flmm_sim.objects import make_parts
from flmm_sim.offscreen import mujoco
from flmm_sim.scene import KINDS
from flmm_sim.solids import BODY, CONTRAST, Part
from flmm_sim.textures import SIZE, make_textures

POOL_SCALES = (0.90, 0.97, 1.04, 1.12)
"""Sizes of the instances of each kind, relative to its standard size."""
TABLE_HALF = (0.50, 0.50)
"""Half the table's length and width, metres."""
SHOWN_GROUP, HIDDEN_GROUP = 0, 5
_FIXED_RGBA = {"metal": (0.68, 0.69, 0.71, 1.0), "dark": (0.13, 0.12, 0.12, 1.0)}
_FINISH_MATERIAL = {"metal": "metal", "dark": "matte"}
_HULL_POINTS = 48


@dataclass(frozen=True)
class Instance:
    """One object of the pool."""

    kind: str
    scale: float
    mocap_id: int
    geoms: tuple[int, ...]
    body_geoms: tuple[int, ...]
    """Geoms that take the object's colour."""
    contrast_geoms: tuple[int, ...]
    """Geoms that take a tone that contrasts with the object's colour."""
    points: np.ndarray
    """``[P, 3]`` float64: points that span its convex hull, body frame, metres."""


@dataclass(frozen=True)
class World:
    """The compiled model and the ids that a scene changes."""

    model: mujoco.MjModel
    data: mujoco.MjData
    pool: dict[str, tuple[Instance, ...]]
    surface_materials: tuple[int, ...]
    """Material ids for the table, the floor and the walls."""
    table_geom: int
    floor_geom: int
    wall_geoms: tuple[int, ...]
    lights: tuple[int, int]
    camera: int


def _add_surfaces(spec: mujoco.MjSpec) -> list[str]:
    """Textures and materials; returns the names of the surface materials."""
    names = []
    for name, image in make_textures().items():
        texture = spec.add_texture(name=name, type=mujoco.mjtTexture.mjTEXTURE_2D, width=SIZE, height=SIZE, nchannel=3)
        texture.data = image.tobytes()
        material = spec.add_material(name=name, texrepeat=[2.2, 2.2], texuniform=True, specular=0.08, shininess=0.2)
        textures = material.textures
        textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = name
        material.textures = textures
        names.append(name)
    spec.add_material(name="glossy", specular=0.35, shininess=0.6)
    spec.add_material(name="matte", specular=0.1, shininess=0.2)
    spec.add_material(name="metal", specular=0.8, shininess=0.7)
    return names


def _add_room(spec: mujoco.MjSpec, material: str) -> None:
    """Table top at z = 0, floor, four walls, two lights and the camera."""
    body = spec.worldbody
    box, plane = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_PLANE
    plain = {"material": material, "contype": 0, "conaffinity": 0}
    body.add_geom(name="table", type=box, size=[*TABLE_HALF, 0.02], pos=[0, 0, -0.02], **plain)
    body.add_geom(name="foot", type=box, size=[0.08, 0.08, 0.33], pos=[0, 0, -0.37], **plain)
    body.add_geom(name="floor", type=plane, size=[2.2, 2.2, 0.1], pos=[0, 0, -0.70], **plain)
    for index in range(4):
        angle = index * np.pi / 2
        inward = np.array([-np.cos(angle), -np.sin(angle), 0.0])
        body.add_geom(
            name=f"wall{index}",
            type=plane,
            size=[2.2, 2.2, 0.1],
            pos=(-2.0 * inward + [0, 0, 0.9]).tolist(),
            zaxis=inward.tolist(),
            **plain,
        )
    for index in range(2):
        body.add_light(
            name=f"light{index}",
            type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
            pos=[0, 0, 2],
            dir=[0, 0, -1],
            castshadow=index == 0,
            specular=[0.3, 0.3, 0.3],
        )
    body.add_camera(name="camera", pos=[0, -0.6, 0.5])


def _add_instance(spec: mujoco.MjSpec, name: str, kind: str, parts: list[Part]) -> None:
    body = spec.worldbody.add_body(name=name, mocap=True)
    for index, part in enumerate(parts):
        mesh = spec.add_mesh(name=f"{name}/{index}", inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL)
        mesh.uservert = part.vertices.ravel().tolist()
        mesh.userface = part.faces.ravel().tolist()
        material = _FINISH_MATERIAL.get(part.finish, "matte" if kind in ("box", "banana") else "glossy")
        body.add_geom(
            name=f"{name}/{index}",
            type=mujoco.mjtGeom.mjGEOM_MESH,
            meshname=mesh.name,
            material=material,
            rgba=_FIXED_RGBA.get(part.finish, (0.6, 0.6, 0.6, 1.0)),
            group=HIDDEN_GROUP,
            contype=0,
            conaffinity=0,
        )


def _hull_points(parts: list[Part]) -> np.ndarray:
    """At most a few dozen points that span the convex hull of all parts, ``[P, 3]``."""
    vertices = np.concatenate([part.vertices for part in parts])
    corners = vertices[ConvexHull(vertices).vertices]
    index = np.arange(_HULL_POINTS) + 0.5
    polar, azimuth = np.arccos(1 - 2 * index / _HULL_POINTS), np.pi * (1 + 5**0.5) * index
    directions = np.stack([np.cos(azimuth) * np.sin(polar), np.sin(azimuth) * np.sin(polar), np.cos(polar)], -1)
    return corners[np.unique((corners @ directions.T).argmax(axis=0))]


def build_world(height: int, width: int, samples: int = 4, shadow_size: int = 1024) -> World:
    """Compile the model for images of the given size in pixels, with ``samples``-fold anti-aliasing."""
    spec = mujoco.MjSpec()
    spec.stat.extent = 1.0
    spec.stat.center = [0, 0, 0]
    visual = spec.visual
    visual.global_.offwidth, visual.global_.offheight = width, height
    visual.quality.offsamples, visual.quality.shadowsize = samples, shadow_size
    visual.map.znear, visual.map.zfar, visual.map.shadowclip = 0.1, 8.0, 0.9
    visual.headlight.specular = [0, 0, 0]
    surfaces = _add_surfaces(spec)
    _add_room(spec, surfaces[0])
    parts = {(kind, scale): make_parts(kind, scale) for kind in KINDS for scale in POOL_SCALES}
    for (kind, scale), pieces in parts.items():
        _add_instance(spec, f"{kind}@{scale}", kind, pieces)
    model = spec.compile()
    pool = {kind: tuple(_find_instance(model, kind, scale, parts[kind, scale]) for scale in POOL_SCALES) for kind in KINDS}
    return World(
        model=model,
        data=mujoco.MjData(model),
        pool=pool,
        surface_materials=tuple(model.material(name).id for name in surfaces),
        table_geom=model.geom("table").id,
        floor_geom=model.geom("floor").id,
        wall_geoms=tuple(model.geom(f"wall{index}").id for index in range(4)),
        lights=(model.light("light0").id, model.light("light1").id),
        camera=model.camera("camera").id,
    )


def _find_instance(model: mujoco.MjModel, kind: str, scale: float, parts: list[Part]) -> Instance:
    name = f"{kind}@{scale}"
    geoms = tuple(model.geom(f"{name}/{index}").id for index in range(len(parts)))
    finishes = [part.finish for part in parts]
    return Instance(
        kind=kind,
        scale=scale,
        mocap_id=int(model.body(name).mocapid[0]),
        geoms=geoms,
        body_geoms=tuple(g for g, finish in zip(geoms, finishes, strict=True) if finish == BODY),
        contrast_geoms=tuple(g for g, finish in zip(geoms, finishes, strict=True) if finish == CONTRAST),
        points=_hull_points(parts),
    )
