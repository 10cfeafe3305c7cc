"""A parallel gripper over the table-top, in MuJoCo's physics: moves to a grasp, closes, and lifts.

Things are rigid bodies with the convex hulls of their meshes. Everything is in the table frame.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flmm_sim.objects import make_parts
from flmm_sim.offscreen import mujoco
from flmm_sim.scene import Scene

MAX_OPENING = 0.11
"""Largest distance between the open fingers, metres."""
LIFT = 0.15
"""Height, in metres, to which the gripper lifts an object ..."""
_HELD = 0.10
"""... and by which the object must have risen."""
_ABOVE = 0.12
"""Distance from the grasp at which the approach begins, metres."""
_STEP = 0.002
_FINGER = np.array([0.006, 0.010, 0.030])
"""Half sizes, metres: along closing, across, along the approach."""
TIP = 0.012
"""Metres from the middle of the finger pads, which moves to the grasp's position, to the finger tips."""
_PHASES = (0.3, 0.8, 0.5, 0.8, 0.3)
"""Seconds: rest, down, close, up, hold."""


@dataclass(frozen=True)
class Pick:
    """Result of an attempt."""

    lifted: bool
    risen: float
    """Metres by which the object was higher at the end."""
    moved_others: float
    """Largest distance by which another object was pushed, metres."""


def try_pick(scene: Scene, target: int, position: np.ndarray, rotation: np.ndarray, opening: float) -> Pick:
    """Simulate an attempt to pick up one object of a scene.

    Args:
        scene: what stands on the table.
        target: index of the thing.
        position: ``[3]`` where the fingertips are to close, metres.
        rotation: ``[3, 3]`` the gripper's frame: x along the closing, z along the approach.
        opening: metres between the open fingers.
    """
    model = _build(scene, position - _ABOVE * rotation[:, 2], rotation)
    data = mujoco.MjData(model)
    bodies = [model.body(f"thing{i}").id for i in range(len(scene.objects))]
    apart = min(opening, MAX_OPENING) / 2
    data.joint("left").qpos[0] = data.joint("right").qpos[0] = apart
    mujoco.mj_forward(model, data)
    began = data.xpos[bodies].copy()
    for phase, seconds in enumerate(_PHASES):
        steps = int(seconds / _STEP)
        for step in range(steps):
            share = (step + 1) / steps
            down, up = ((0.0, 0.0), (share, 0.0), (1.0, 0.0), (1.0, share), (1.0, 1.0))[phase]
            data.actuator("hand").ctrl[0] = down * _ABOVE - up * LIFT
            for finger in ("left", "right"):
                data.actuator(finger).ctrl[0] = apart if phase < 2 else 0.0
            mujoco.mj_step(model, data)
    moved = data.xpos[bodies] - began
    others = [float(np.linalg.norm(moved[i][:2])) for i in range(len(bodies)) if i != target]
    return Pick(bool(moved[target][2] > _HELD), float(moved[target][2]), max(others, default=0.0))


def _build(scene: Scene, start: np.ndarray, rotation: np.ndarray) -> mujoco.MjModel:
    spec = mujoco.MjSpec()
    spec.option.timestep = _STEP
    spec.option.cone = mujoco.mjtCone.mjCONE_ELLIPTIC
    spec.option.impratio = 10.0
    spec.worldbody.add_geom(name="table", type=mujoco.mjtGeom.mjGEOM_PLANE, size=[1, 1, 0.1], friction=[0.8, 0.02, 0.001])
    for number, thing in enumerate(scene.objects):
        body = spec.worldbody.add_body(name=f"thing{number}", pos=thing.pose[:3, 3], quat=_quaternion(thing.pose[:3, :3]))
        body.add_freejoint()
        for index, part in enumerate(make_parts(thing.kind, thing.scale)):
            mesh = spec.add_mesh(name=f"thing{number}/{index}", inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_CONVEX)
            mesh.uservert = part.vertices.ravel().tolist()
            mesh.userface = part.faces.ravel().tolist()
            friction = {"friction": [0.8, 0.02, 0.001], "condim": 4, "density": 300.0}
            body.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname=mesh.name, **friction)
    _add_gripper(spec, start, rotation)
    return spec.compile()


def _add_gripper(spec: mujoco.MjSpec, start: np.ndarray, rotation: np.ndarray) -> None:
    """A slide moves the hand along its approach, two more move the fingers."""
    slide, box = mujoco.mjtJoint.mjJNT_SLIDE, mujoco.mjtGeom.mjGEOM_BOX
    hand = spec.worldbody.add_body(name="hand", pos=start, quat=_quaternion(rotation), gravcomp=1.0)
    hand.add_joint(name="hand", type=slide, axis=[0, 0, 1])
    palm = TIP - 2 * _FINGER[2] - 0.012
    hand.add_geom(type=box, size=[MAX_OPENING / 2 + 0.012, 0.012, 0.012], pos=[0, 0, palm], mass=0.5)
    _add_motor(spec, "hand", stiffness=4000.0, damping=90.0, force=200.0)
    for name, side in (("left", -1.0), ("right", 1.0)):
        finger = hand.add_body(name=name, gravcomp=1.0)
        finger.add_joint(name=name, type=slide, axis=[side, 0, 0], range=[0, MAX_OPENING / 2], limited=True)
        pos = [side * _FINGER[0], 0, TIP - _FINGER[2]]
        finger.add_geom(type=box, size=_FINGER, pos=pos, mass=0.05, friction=[1.0, 0.02, 0.001], condim=4)
        _add_motor(spec, name, stiffness=500.0, damping=10.0, force=12.0)


def _add_motor(spec: mujoco.MjSpec, joint: str, *, stiffness: float, damping: float, force: float) -> None:
    motor = spec.add_actuator(name=joint, target=joint, trntype=mujoco.mjtTrn.mjTRN_JOINT)
    motor.set_to_position(kp=stiffness, kv=damping)
    motor.forcelimited, motor.forcerange = True, [-force, force]


def _quaternion(rotation: np.ndarray) -> np.ndarray:
    quaternion = np.empty(4)
    mujoco.mju_mat2Quat(quaternion, np.ascontiguousarray(rotation).ravel())
    return quaternion
