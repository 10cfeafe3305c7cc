"""Names of parameters: those that a node has, and those that were given at its start."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from rclpy.node import Node
from rclpy.parameter import Parameter

from flmm_core.config import Tunable

_IMPLICIT = ("use_sim_time", "start_type_description_service", "qos_overrides")
"""Parameters that rclpy itself declares."""


class ParameterError(ValueError):
    """A parameter has a wrong value at start, or does not exist; the message is one line."""


def check_names(node: Node, known: Mapping[str, Tunable]) -> None:
    """Warn of unknown names in files, which nodes share.

    Raises:
        ParameterError: the command line names an unknown parameter.
    """
    for name in overrides_of(node):
        if name in known or name.split(".")[0] in _IMPLICIT:
            continue
        if name in _typed_names(sys.argv):
            raise ParameterError(unknown(name, known))
        node.get_logger().warning(f"ignored, {unknown(name, known)}")


def _typed_names(words: Sequence[str]) -> set[str]:
    """Names of the parameters on the command line: ``-p name:=value``."""
    given = (word for flag, word in pairwise(words) if flag in ("-p", "--param"))
    return {assignment.split(":=")[0].split(":")[-1] for assignment in given}


def unknown(name: str, known: Iterable[str]) -> str:
    """The message about a parameter that does not exist, with the closest known name."""
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known))}"
    return f"unknown parameter {name}: {hint}"


def overrides_of(node: Node) -> Mapping[str, Parameter[Any]]:
    """Parameter overrides of command line and files, unknown names included.

    A private attribute, because rclpy has no public access to overrides of parameters that are not declared.
    """
    return getattr(node, "_parameter_overrides", {})
