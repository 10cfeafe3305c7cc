"""`flmm train heads` for any LMM; `flmm train tower`, `lmm`, `sam` for the other stages of flmm-tabletop.

Options and defaults are the fields of the stage's settings and of its loop (flmm_core/training/settings.py).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import Field, dataclass, fields, replace
from pathlib import Path
from typing import Any

from flmm_cli.shared.outputs import add_output, whole_folder
from flmm_core.config import GroundingConfig
from flmm_core.training.settings import HeadsSettings, LoopConfig, StageSettings
from flmm_tabletop.training.settings import LmmSettings, SamSettings, TowerSettings


@dataclass(frozen=True)
class Stage:
    """A stage of training, which is a command of its own."""

    name: str
    settings: type[StageSettings]
    summary: str
    description: str


STAGES = (
    Stage(
        "tower",
        TowerSettings,
        "train the vision tower of flmm-tabletop (stage 1)",
        "The tower learns which objects are in an image from their names alone, without positions.",
    ),
    Stage(
        "lmm",
        LmmSettings,
        "train the LMM of flmm-tabletop (stage 2)",
        "A tiny LLaVA learns to answer by next-token loss, without any mask, box or coordinate.",
    ),
    Stage(
        "sam",
        SamSettings,
        "train the SAM of flmm-tabletop (stage 3)",
        "A small SAM learns to refine masks like those of a mask head.",
    ),
    Stage(
        "heads",
        HeadsSettings,
        "train grounding heads on any frozen LMM (stage 4 of flmm-tabletop)",
        "Trains U-Net, text projection, layer weights, SAM decoder and keyword selector on the frozen LMM.",
    ),
)


_CACHES = {"votes", "val_votes"}
"""Folders that a stage makes before its log."""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    train = subparsers.add_parser("train", help="train heads, or a stage of flmm-tabletop", description="Trains a stage.")
    stages = train.add_subparsers(title="what to train", metavar="STAGE", required=True)
    for stage in STAGES:
        parser = stages.add_parser(
            stage.name,
            help=stage.summary,
            description=f"{stage.description} Result: OUT/{stage.name}. A run that was stopped continues from its checkpoint.",
        )
        for entry in _options(stage.settings):
            _add_option(parser, entry, entry.default)
        add_output(
            parser,
            "--out",
            output={"folder": True, "entries": whole_folder, "own": _own},
            default=Path("runs") / stage.name,
            help="folder of results, log and checkpoint (default: %(default)s)",
        )
        for entry in _loop_options(stage):
            _add_option(parser, entry, getattr(stage.settings.LOOP, entry.name))
        parser.add_argument(
            "--device", default=GroundingConfig.device, help="auto, cpu, cuda, cuda:1, ... (default: %(default)s)"
        )
        parser.set_defaults(stage=stage)


def _options(settings: type[StageSettings | LoopConfig]) -> Iterator[Field[Any]]:
    return (entry for entry in fields(settings) if "description" in entry.metadata)


def _loop_options(stage: Stage) -> list[Field[Any]]:
    """Options of the loop, without the steps where they follow from the stage's epochs."""
    epochs = any(entry.name == "epochs" for entry in fields(stage.settings))
    return [entry for entry in _options(LoopConfig) if not (epochs and entry.name == "steps")]


def _add_option(parser: argparse.ArgumentParser, entry: Field[Any], default: Any) -> None:
    kind: dict[str, Any] = {"type": Path if isinstance(default, Path) else type(default)}
    if isinstance(default, bool):
        kind = {"action": argparse.BooleanOptionalAction}
    text = f"{entry.metadata['description']} (default: %(default)s)"
    if isinstance(default, tuple):
        kind = {"action": "append", "metavar": "DATA"}
        text = f"{entry.metadata['description']}; may be given several times (default: {' '.join(default)})"
        default = None
    parser.add_argument("--" + entry.name.replace("_", "-"), default=default, help=text, **kind)


def _own(folder: Path, _: str) -> bool:
    """Whether a stage was trained in a folder, perhaps only until its caches were written."""
    config = folder / "config.json"
    return {entry.name for entry in folder.iterdir()} <= _CACHES or (config.is_file() and b'"loop"' in config.read_bytes())


def run(args: argparse.Namespace) -> int:
    """Run the stage on its data set, or continue a run that was stopped."""
    from flmm_core.common.devices import resolve_device

    stage: Stage = args.stage
    given = {entry.name: getattr(args, entry.name) for entry in _options(stage.settings)}
    lists = {name: tuple(value) for name, value in given.items() if isinstance(value, list)}
    settings = stage.settings(**{name: value for name, value in {**given, **lists}.items() if value is not None})
    loop = replace(stage.settings.LOOP, **{entry.name: getattr(args, entry.name) for entry in _loop_options(stage)})
    for entry in _options(stage.settings):
        path = getattr(settings, entry.name)
        if entry.metadata["earlier"] and not path.exists():
            raise ValueError(f"--{entry.name}: expected the result of an earlier stage at {path}, got nothing there")
    device, _ = resolve_device(GroundingConfig(device=args.device))
    _trainer(stage.name)(args.out, settings, loop, device)
    print(f"{stage.name}: {args.out}")
    return 0


def _trainer(name: str) -> Callable[..., None]:
    """The function of a stage; imported here because it imports PyTorch."""
    match name:
        case "tower":
            from flmm_tabletop.training.tower import train_tower

            return train_tower
        case "lmm":
            from flmm_tabletop.training.lmm import train_lmm

            return train_lmm
        case "sam":
            from flmm_tabletop.training.sam import train_sam

            return train_sam
        case "heads":
            from flmm_core.training.heads import train_heads

            return train_heads
    raise AssertionError(name)
