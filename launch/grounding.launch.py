"""The grounding node, for a camera that is already running.

For instance::

    ros2 launch flmm_ros grounding.launch.py grounding_image:=/camera/image_raw
    ros2 launch flmm_ros grounding.launch.py grounding_lmm:=llava-hf/llava-1.5-7b-hf grounding_heads:=... grounding_rviz:=true

The node gets what was given and nothing else: parameters that launch files set for all nodes (``SetParameter``) and those of
``grounding_params_file`` hold unless an argument names another value.

A node that dies is started again with ``grounding_respawn:=true``; else the launch goes on with what is left (RViz, the nodes
of a parent) and ends when nothing is.

Launch files that include each other share the names of their arguments. Arguments of this node alone therefore begin with
``grounding_``; the others have the same meaning for every node.
"""

import os
import re
from pathlib import Path

from ament_index_python.packages import PackageNotFoundError, get_package_prefix, get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from flmm_ros.launch_arguments import full_namespace, log_level, switch

SHARE = Path(get_package_share_directory("flmm_ros"))

MODEL_ARGUMENTS = {
    "lmm": "LMM: a folder or a Hugging Face name",
    "heads": "grounding heads: auto, attention (no training), a folder or file",
    "sam": "SAM: auto, a folder or file",
    "device": "auto, cpu, cuda, cuda:1, ...",
}
TOPIC_ARGUMENTS = {
    "image": "camera images",
    "depth": "depth of the images, registered to them",
    "camera_info": "intrinsics of the images",
    "command": "questions",
    "phrase": "phrases to ground",
}
"""Inputs of the node; each argument is the topic to subscribe to instead."""


def _nodes(context: LaunchContext) -> list[Node]:
    """The node, and RViz on request."""

    def value(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    switches = {
        name: switch(name, value(name)) for name in ("use_sim_time", "autostart", "grounding_respawn", "grounding_rviz")
    }
    namespace = full_namespace(LaunchConfiguration("ros_namespace", default="").perform(context), value("namespace"))
    name = f"{namespace.rstrip('/')}/grounding"
    file = value("grounding_params_file")
    if file and not Path(file).is_file():
        raise ValueError(f"grounding_params_file: expected an existing file, got {file}")
    files = [file] if file else []
    given = {key: value(f"grounding_{key}") or None for key in MODEL_ARGUMENTS}
    given |= {key: switches[key] for key in ("use_sim_time", "autostart")}
    given = {key: chosen for key, chosen in given.items() if chosen is not None}
    topics = {topic: value(f"grounding_{topic}") for topic in TOPIC_ARGUMENTS}
    level = log_level(value("log_level"))
    nodes = [
        Node(
            package="flmm_ros",
            executable="grounding_node",
            name="grounding",
            namespace=namespace,
            parameters=[*files, *([given] if given else [])],
            remappings=[(topic, other) for topic, other in topics.items() if other],
            # Only for this node's own logger: at level debug, the middleware logs far more than the node.
            ros_arguments=["--log-level", f"{name.strip('/').replace('/', '.')}:={level}"] if level else None,
            respawn=bool(switches["grounding_respawn"]),
            respawn_delay=2.0,
            output="screen",
        )
    ]
    if switches["grounding_rviz"]:
        clock = {key: given[key] for key in ("use_sim_time",) if key in given}
        nodes.append(_rviz(namespace, value("grounding_fixed_frame"), [*files, *([clock] if clock else [])]))
    return nodes


def _rviz(namespace: str, frame: str, parameters: list) -> Node:
    """RViz with the layout of this package, whose absolute topics are remapped into the namespace.

    Raises:
        RuntimeError: RViz is not installed.
    """
    try:
        get_package_prefix("rviz2")
    except PackageNotFoundError as error:
        package = f"ros-{os.environ.get('ROS_DISTRO', '$ROS_DISTRO')}-rviz2"
        raise RuntimeError(f"grounding_rviz: expected RViz, which is not installed: apt-get install {package}") from error
    layout = SHARE / "rviz" / "grounding.rviz"
    topics = re.findall(r"Value: (/\S+)", layout.read_text())
    return Node(
        package="rviz2",
        executable="rviz2",
        namespace=namespace,
        parameters=parameters,
        remappings=[(topic, f"{namespace}{topic}") for topic in topics if namespace != "/"],
        arguments=["-d", str(layout), "-f", frame],
    )


def generate_launch_description() -> LaunchDescription:
    """Arguments, node and RViz."""
    parameter = "; empty: as in grounding_params_file, or the default"
    arguments = {
        **{f"grounding_{name}": ("", text + parameter) for name, text in MODEL_ARGUMENTS.items()},
        **{f"grounding_{name}": ("", f"topic of the {text}; empty: {name}") for name, text in TOPIC_ARGUMENTS.items()},
        "grounding_params_file": ("", "YAML file of the node's parameters, for instance a copy of config/grounding.yaml"),
        "grounding_fixed_frame": ("camera_optical_frame", "frame in which RViz draws"),
        "grounding_rviz": ("false", "true: show overlay, label mask, points and markers in RViz"),
        "grounding_respawn": ("false", "true: restart the node when it dies"),
        "namespace": ("", "namespace of the node, below the one that a parent pushed"),
        "log_level": ("", "level of the node's own log: debug, info, warn, error, fatal; empty: info"),
        "autostart": (
            "",
            "true: load the model and accept commands at start; false: wait for a manager to configure and activate"
            + parameter,
        ),
        "use_sim_time": ("", "true: take the time from /clock, for bags and simulators" + parameter),
    }
    declared = (DeclareLaunchArgument(name, default_value=d, description=text) for name, (d, text) in arguments.items())
    return LaunchDescription([*declared, OpaqueFunction(function=_nodes)])
