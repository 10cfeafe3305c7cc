"""ROS parameters of the nodes, declared from :class:`flmm_core.config.Tunable` entries.

Every default, range and description exists once: those of grounding in flmm_core.config, the node's own in
:data:`NODE_TUNABLES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

from flmm_core.config import GroundingConfig, Tunable, tunables
from flmm_ros.parameter_names import ParameterError, check_names, overrides_of

NODE_TUNABLES = (
    Tunable(
        "autostart",
        bool,
        True,
        "Load the model and accept commands at start. Off: wait for the transitions configure and activate.",
    ),
    Tunable(
        "server",
        str,
        "",
        "Address of a fleet that answers instead of a model in this node, for instance http://fleet.local:8000; empty: none. Of"
        " the model parameters, only max_new_tokens and max_phrases then have an effect.",
    ),
    Tunable(
        "image_transport",
        str,
        "raw",
        "Which images to subscribe to: raw, or the compressed ones of image_transport (image/compressed: JPEG, PNG).",
        choices=("raw", "compressed"),
    ),
    Tunable(
        "depth_transport",
        str,
        "raw",
        "Which depth images to subscribe to: raw, or those of image_transport's compressedDepth (depth/compressedDepth: PNG,"
        " RVL).",
        choices=("raw", "compressedDepth"),
    ),
    Tunable(
        "max_image_age",
        float,
        5.0,
        "Refuse commands if the newest image is older than this, by its stamp or by its arrival; 0 accepts any age.",
        unit="s",
        minimum=0.0,
        maximum=86400.0,
    ),
    Tunable(
        "max_image_pixels",
        int,
        4096 * 4096,
        "Refuse images with more pixels than this.",
        unit="pixels",
        minimum=1,
        maximum=2**31 - 1,
    ),
    Tunable(
        "significant_bits",
        int,
        0,
        "Significant bits of the samples of 16-bit images (mono16, rgb16, ...); 0: 10, 12, 14 or 16, by the brightest sample"
        " of each image. Set it for dark scenes: the automatic choice may brighten them.",
        unit="bits",
        minimum=0,
        maximum=16,
    ),
    Tunable(
        "depth_tolerance",
        float,
        0.02,
        "Maximum difference between the stamps of an image and its depth image.",
        unit="s",
        minimum=0.0,
        maximum=10.0,
    ),
    Tunable(
        "target_frame",
        str,
        "",
        "Frame of locations, ~/objects, ~/markers and ~/detections_3d, by TF at the image's stamp; empty: that of the image.",
    ),
    Tunable(
        "transform_timeout",
        float,
        0.5,
        "Time to wait for the transform to target_frame when an answer is ready: TF may come later than the image.",
        unit="s",
        minimum=0.0,
        maximum=10.0,
    ),
    Tunable(
        "max_command_length",
        int,
        500,
        "Refuse commands and phrases longer than this.",
        unit="characters",
        minimum=1,
        maximum=10000,
    ),
    Tunable(
        "queue_size",
        int,
        8,
        "Maximum number of waiting commands; more are refused.",
        unit="commands",
        minimum=1,
        maximum=1000,
    ),
    Tunable(
        "command_deadline",
        float,
        0.0,
        "Maximum time of a command, from its turn to its answer: it is then refused, and a model that does not return is"
        " reported as hanging; 0: no limit.",
        unit="s",
        minimum=0.0,
        maximum=86400.0,
    ),
    Tunable(
        "watch_rate",
        float,
        5.0,
        "Maximum rate of the results for ~/watch.",
        unit="Hz",
        minimum=0.1,
        maximum=60.0,
    ),
    Tunable(
        "watch_refresh",
        float,
        2.0,
        "Time between two passes of the model for ~/watch; between them masks follow by optical flow. 0: every image.",
        unit="s",
        minimum=0.0,
        maximum=3600.0,
    ),
    Tunable(
        "slow_answer",
        float,
        0.0,
        "Diagnostics warn if more than 5 % of the answers take longer than this; 0: never.",
        unit="s",
        minimum=0.0,
        maximum=3600.0,
    ),
)
"""Tunables of the node, in addition to those of grounding."""

THRESHOLDS = ("selector_threshold", "presence_threshold", "mask_threshold")
"""Parameters of the pipeline that hold for each command anew."""

CHANGEABLE = frozenset(
    {
        "max_new_tokens",
        *THRESHOLDS,
        "max_image_age",
        "max_image_pixels",
        "significant_bits",
        "depth_tolerance",
        "target_frame",
        "transform_timeout",
        "max_command_length",
        "slow_answer",
        "watch_rate",
        "watch_refresh",
    }
)
"""Parameters that may change at any time; the others take effect when the node is configured, and are locked from then on."""


def declare(
    node: Node, entries: Iterable[Tunable], changeable: frozenset[str], *, locked: Callable[[], str] | None = None
) -> None:
    """Declare parameters on a node, and refuse wrong values now and later.

    Args:
        node: none of ``entries`` may be declared on it yet.
        entries: the parameters.
        changeable: names of those that may change at any time.
        locked: returns why the others cannot change now, or an empty text; None: they are read-only.

    Raises:
        ParameterError: an override (command line, file) is out of range or of a wrong type, or the command line names an
            unknown parameter. Unknown names in files only cause a warning, because nodes share files.
    """
    by_name = {entry.name: entry for entry in entries}
    check_names(node, by_name)
    for entry in by_name.values():
        override = overrides_of(node).get(entry.name)
        given = entry.default if override is None else override.value
        if entry.type is float and type(given) is int:
            given = float(given)
        try:
            read_only = locked is None and entry.name not in changeable
            node.declare_parameter(entry.name, given, _descriptor(entry, read_only), ignore_override=True)
            entry.check(value(node, entry.name))
        except (InvalidParameterTypeException, InvalidParameterValueException, ValueError) as error:
            raise ParameterError(_refusal(entry, given, error)) from error

    def check(parameters: list[Parameter[Any]]) -> SetParametersResult:
        for parameter in parameters:
            entry = by_name.get(parameter.name)
            try:
                if entry is not None:
                    entry.check(parameter.value)
                    if entry.name not in changeable and locked is not None and (reason := locked()):
                        raise ValueError(f"{entry.name}: {reason}")
            except ValueError as error:
                return SetParametersResult(successful=False, reason=f"parameter {error}")
        return SetParametersResult(successful=True)

    node.add_on_set_parameters_callback(check)


def declare_grounding(node: Node, locked: Callable[[], str]) -> None:
    """Declare all parameters of the grounding node; see :func:`declare`."""
    declare(node, (*tunables(), *NODE_TUNABLES), CHANGEABLE, locked=locked)


def grounding_config(node: Node) -> GroundingConfig:
    """The configuration in the node's parameters now."""
    return GroundingConfig(**{entry.name: value(node, entry.name, entry.type) for entry in tunables()})


def value(node: Node, name: str, kind: type | None = None) -> Any:
    """The value of a parameter; with ``kind`` float, a whole number becomes a float."""
    current = node.get_parameter(name).value
    return float(current) if kind is float else current


def _descriptor(entry: Tunable, read_only: bool) -> ParameterDescriptor:
    unit = f" [{entry.unit}]" if entry.unit else ""
    descriptor = ParameterDescriptor(
        description=entry.description + unit,
        read_only=read_only,
        additional_constraints=f"one of: {', '.join(entry.choices)}" if entry.choices else "",
        # The callback checks the type, with a clearer message than rclpy's.
        dynamic_typing=True,
    )
    if entry.minimum is not None and entry.maximum is not None:
        if entry.type is int:
            descriptor.integer_range = [IntegerRange(from_value=int(entry.minimum), to_value=int(entry.maximum), step=1)]
        else:
            low, high = float(entry.minimum), float(entry.maximum)
            descriptor.floating_point_range = [FloatingPointRange(from_value=low, to_value=high, step=0.0)]
    return descriptor


def _refusal(entry: Tunable, given: Any, error: Exception) -> str:
    """The message of :meth:`Tunable.check`, also where rclpy found the mistake first."""
    try:
        entry.check(given)
    except ValueError as refusal:
        return f"parameter {refusal}"
    return f"parameter {entry.name}: {error}" if not _is_nan(given) else f"parameter {entry.name}: got NaN"


def _is_nan(given: Any) -> bool:
    return isinstance(given, float) and math.isnan(given)
