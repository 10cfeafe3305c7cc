"""Picking up what was named, from words to a lifted thing: the model, depth, a grasp, and a gripper in physics."""

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
from flmm_sim.gripper import WIDEST, try_pick
from flmm_sim.renderer import TabletopRenderer
from flmm_sim.scene import Scene, scene_seed

LIFTED, DROPPED, TOO_WIDE, NOWHERE, OTHER, SILENT = (
    "lifted",
    "not lifted",
    "wider than the gripper, and said so",
    "without a place",
    "pointed at another thing",
    "pointed at nothing",
)
OUTCOMES = (LIFTED, DROPPED, TOO_WIDE, NOWHERE, OTHER, SILENT)
_LEAST_IOU = 0.5
"""A mask that shares less with that of the thing points at another one."""


@dataclass(frozen=True)
class Attempt:
    """One command and what became of it."""

    seed: int
    command: str
    answer: str
    kind: str
    outcome: str
    reason: str = ""
    iou: float = 0.0
    off: float = 0.0
    """Metres between the middle that was found and that of the footprint, across the table."""
    risen: float = 0.0
    """Metres by which the thing was lifted."""


def attempts(pipeline: GroundingPipeline, count: int, seed: int) -> list[Attempt]:
    """One attempt in each of ``count`` scenes: at a thing whose name stands for it alone, every kind in turn."""
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
    thing = scene.objects[target]
    command = f"pick up the {thing.name}"
    answer = pipeline.chat(pipeline.encode(scene.image), command)

    def ended(outcome: str, **more: Any) -> Attempt:
        return Attempt(seed, command, answer.text, thing.kind, outcome, **more)

    phrase = next((phrase for phrase in answer.phrases if phrase.mask.any()), None)
    if phrase is None:
        return ended(SILENT)
    iou = Overlap.of(phrase.mask, thing.mask).iou
    if iou < _LEAST_IOU:
        return ended(OTHER, iou=iou)
    try:
        grasp, off = _grasp(phrase, scene, target)
    except NoDepthError as error:
        return ended(NOWHERE, reason=str(error), iou=iou)
    except NoGraspError as error:
        return ended(TOO_WIDE if "narrower" in str(error) else NOWHERE, reason=str(error), iou=iou)
    rotation, translation = scene.camera_pose[:3, :3], scene.camera_pose[:3, 3]
    pick = try_pick(scene, target, rotation @ grasp.position + translation, rotation @ grasp.rotation, grasp.opening)
    return ended(LIFTED if pick.lifted else DROPPED, iou=iou, off=off, risen=pick.risen)


def _grasp(phrase: GroundedPhrase, scene: Scene, target: int) -> tuple[Grasp, float]:
    place = locate(phrase.mask, scene.depth, scene.intrinsics)
    middle = (scene.camera_pose @ np.append(place.centroid, 1.0))[:2]
    off = float(np.linalg.norm(middle - np.array(scene.objects[target].position[:2])))
    return top_grasp(place, WIDEST), off


def rows(found: Sequence[Attempt]) -> list[tuple[str, str, str]]:
    """Outcome, count and share, for a table; then those of what the gripper tried."""
    counts = Counter(attempt.outcome for attempt in found)
    table = [(name, str(counts[name]), f"{counts[name] / len(found):.3f}") for name in OUTCOMES if counts[name]]
    tried = counts[LIFTED] + counts[DROPPED]
    if tried:
        table.append(("lifted, of what the gripper closed on", f"{counts[LIFTED]} of {tried}", f"{counts[LIFTED] / tried:.3f}"))
    offs = [attempt.off for attempt in found if attempt.outcome in (LIFTED, DROPPED)]
    if offs:
        table.append(("middle found within, median", f"{len(offs)}", f"{1000 * np.median(offs):.1f} mm"))
    return table


def record(found: Sequence[Attempt]) -> dict[str, Any]:
    """What is written as JSON."""
    return {
        "attempts": len(found),
        "outcomes": {name: sum(attempt.outcome == name for attempt in found) for name in OUTCOMES},
        "rows": rows(found),
        "all": [
            {key: round(value, 4) if isinstance(value, float) else value for key, value in asdict(a).items()} for a in found
        ],
    }
