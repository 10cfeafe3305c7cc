"""Measures picking, from a command to a lifted object: the model, depth, a grasp, and a simulated gripper."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from flmm_core.images.masks import Overlap
from flmm_core.pipeline import GroundingPipeline
from flmm_core.spatial.grasp import Grasp, NoGraspError, top_grasp
from flmm_core.spatial.location import NoDepthError, locate
from flmm_core.types import GroundedPhrase
from flmm_sim.gripper import MAX_OPENING, try_pick
from flmm_sim.renderer import TabletopRenderer
from flmm_sim.scene import Scene, scene_seed

LIFTED, NOT_LIFTED, TOO_WIDE, NOT_LOCATED, OTHER_OBJECT, NO_MASK = (
    "lifted",
    "not lifted",
    "too wide for the gripper, reported",
    "not located",
    "mask of another object",
    "no mask",
)
OUTCOMES = (LIFTED, NOT_LIFTED, TOO_WIDE, NOT_LOCATED, OTHER_OBJECT, NO_MASK)
_MIN_IOU = 0.5
"""A mask of lower IoU with that of the object belongs to another object."""


@dataclass(frozen=True)
class Attempt:
    """One command and its result."""

    seed: int
    """Of the scene."""
    command: str
    answer: str
    kind: str
    """Of the object."""
    outcome: str
    """One of :data:`OUTCOMES`."""
    reason: str = ""
    """Why there was no grasp."""
    iou: float = 0.0
    """Of the mask with that of the object."""
    centre_error: float = 0.0
    """Horizontal metres between the located centre and that of the object."""
    lifted_by: float = 0.0
    """Metres by which the object was lifted."""


def attempts(pipeline: GroundingPipeline, count: int, seed: int) -> list[Attempt]:
    """One attempt in each of ``count`` scenes, at an object whose name is unique in its scene."""
    found: list[Attempt] = []
    with TabletopRenderer() as renderer:
        for index in tqdm(range(count), unit="scene"):
            at = scene_seed("test", seed, index)
            scene = renderer.sample(at)
            names = Counter(thing.name for thing in scene.objects)
            single = [i for i, thing in enumerate(scene.objects) if names[thing.name] == 1]
            if single:
                found.append(_attempt(pipeline, scene, single[index % len(single)], at))
    return found


def _attempt(pipeline: GroundingPipeline, scene: Scene, target: int, seed: int) -> Attempt:
    named = scene.objects[target]
    command = f"pick up the {named.name}"
    answer = pipeline.chat(pipeline.encode(scene.image), command)

    def ended(outcome: str, **more: Any) -> Attempt:
        return Attempt(seed, command, answer.text, named.kind, outcome, **more)

    phrase = next((phrase for phrase in answer.phrases if phrase.mask.any()), None)
    if phrase is None:
        return ended(NO_MASK)
    iou = Overlap.of(phrase.mask, named.mask).iou
    if iou < _MIN_IOU:
        return ended(OTHER_OBJECT, iou=iou)
    try:
        grasp, error = _grasp(phrase, scene, target)
    except NoDepthError as cause:
        return ended(NOT_LOCATED, reason=str(cause), iou=iou)
    except NoGraspError as cause:
        return ended(TOO_WIDE if "narrower" in str(cause) else NOT_LOCATED, reason=str(cause), iou=iou)
    rotation, translation = scene.camera_pose[:3, :3], scene.camera_pose[:3, 3]
    pick = try_pick(scene, target, rotation @ grasp.position + translation, rotation @ grasp.rotation, grasp.opening)
    return ended(LIFTED if pick.lifted else NOT_LIFTED, iou=iou, centre_error=error, lifted_by=pick.risen)


def _grasp(phrase: GroundedPhrase, scene: Scene, target: int) -> tuple[Grasp, float]:
    """A grasp from above, and the horizontal error of the located centre in metres."""
    place = locate(phrase.mask, scene.depth, scene.intrinsics)
    centre = (scene.camera_pose @ np.append(place.centroid, 1.0))[:2]
    error = float(np.linalg.norm(centre - np.array(scene.objects[target].position[:2])))
    return top_grasp(place, MAX_OPENING), error


def rows(found: Sequence[Attempt]) -> list[tuple[str, str, str]]:
    """Cells of a table: outcome, count and share; then lifted objects and centre error of the attempts with a grasp."""
    counts = Counter(attempt.outcome for attempt in found)
    table = [(name, str(counts[name]), f"{counts[name] / len(found):.3f}") for name in OUTCOMES if counts[name]]
    tried = counts[LIFTED] + counts[NOT_LIFTED]
    if tried:
        table.append(("lifted, of attempts with a grasp", f"{counts[LIFTED]} of {tried}", f"{counts[LIFTED] / tried:.3f}"))
    errors = [attempt.centre_error for attempt in found if attempt.outcome in (LIFTED, NOT_LIFTED)]
    if errors:
        table.append(("error of the located centre, median", f"{len(errors)}", f"{1000 * np.median(errors):.1f} mm"))
    return table


def record(found: Sequence[Attempt]) -> dict[str, Any]:
    """The record that is written as JSON."""
    return {
        "attempts": len(found),
        "outcomes": {name: sum(attempt.outcome == name for attempt in found) for name in OUTCOMES},
        "rows": rows(found),
        "all": [
            {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(a).items()} for a in found
        ],
    }
