"""Options that say which model grounds and how, declared from the one list of tunables."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from typing import TYPE_CHECKING

from flmm_core.config import GroundingConfig, Tunable, tunables

if TYPE_CHECKING:
    from flmm_core.pipeline import GroundingPipeline


def add_model_options(parser: argparse.ArgumentParser, names: Collection[str] = ()) -> None:
    """One option for each entry of :class:`~flmm_core.config.GroundingConfig`.

    Args:
        parser: of a command.
        names: entries that the command uses, if it does not use all.
    """
    group = parser.add_argument_group("model")
    for tunable in tunables():
        if names and tunable.name not in names:
            continue
        option = "--" + tunable.name.replace("_", "-")
        if tunable.type is bool:
            group.add_argument(option, action=argparse.BooleanOptionalAction, default=tunable.default, help=_help(tunable))
        else:
            metavar = {str: "TEXT", int: "N", float: "X"}[tunable.type]
            group.add_argument(option, type=tunable.type, default=tunable.default, metavar=metavar, help=_help(tunable))


def grounding_config(args: argparse.Namespace) -> GroundingConfig:
    """The options as a configuration; what is no option of the command has its default.

    Raises:
        ValueError: a value is out of range.
    """
    return GroundingConfig(
        **{tunable.name: getattr(args, tunable.name) for tunable in tunables() if hasattr(args, tunable.name)}
    )


def load_pipeline(config: GroundingConfig) -> GroundingPipeline:
    """The pipeline that a configuration asks for, of the shipped model or any other; imports PyTorch."""
    from flmm_core.pipeline import GroundingPipeline

    return GroundingPipeline.from_config(config)


def model_names(config: GroundingConfig) -> dict[str, str]:
    """Which LMM, heads and SAM a configuration names, for people to read."""
    return {part: getattr(config, part) for part in ("lmm", "heads", "sam")}


def _help(tunable: Tunable) -> str:
    allowed = ""
    if tunable.choices:
        allowed = f"; one of {', '.join(tunable.choices)}"
    elif tunable.minimum is not None and tunable.maximum is not None:
        allowed = f"; {tunable.minimum:g} to {tunable.maximum:g}"
    default = f" (default: {'empty' if tunable.default == '' else tunable.default}{allowed})"
    return tunable.description.replace("%", "%%") + default
