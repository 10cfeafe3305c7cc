"""The grounding node, for a camera that is already running.

For instance::

    ros2 launch flmm_ros grounding.launch.py grounding_image:=/camera/image_raw
    ros2 launch flmm_ros grounding.launch.py grounding_lmm:=llava-hf/llava-1.5-7b-hf grounding_heads:=... grounding_rviz:=true

Launch files that include each other share the names of their arguments. Arguments of this node alone therefore begin with
``grounding_``; the others have the same meaning for every node.
"""

import tempfile
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

SHARE = Path(get_package_share_directory("flmm_ros"))

MODEL_ARGUMENTS = {
    "lmm": "LMM: a folder or a Hugging Face name; empty: as in grounding_params_file",
    "heads": "grounding heads: a folder or file; empty: as in grounding_params_file",
    "sam": "SAM: a folder or file; empty: as in grounding_params_file",
    "device": "auto, cpu, cuda, cuda:1, ...; empty: as in grounding_params_file",
}
TOPIC_ARGUMENTS = {
    "image": "camera images",
    "depth": "depth of the images, registered to them",
    "camera_info": "intrinsics of the images",
    "command": "questions",
    "phrase": "phrases to ground",
}
"""Inputs of the node; each argument is the topic to subscribe to instead."""

SWITCH = ["true", "false"]


def _nodes(context: LaunchContext) -> list[Node]:
    """The node, and RViz on request; model arguments override the parameter file only if they are given."""

    def value(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    file = Path(value("grounding_params_file"))
    if not file.is_file():
        raise RuntimeError(f"grounding_params_file: expected an existing file, got {file}")
    namespace = value("namespace").strip("/")
    name = f"/{namespace}/grounding" if namespace else "/grounding"
    given = {name: value(f"grounding_{name}") for name in MODEL_ARGUMENTS}
    switches = {name: value(name) == "true" for name in ("use_sim_time", "autostart")}
    level = value("log_level")
    nodes = [
        Node(
            package="flmm_ros",
            executable="grounding_node",
            name="grounding",
            namespace=namespace,
            parameters=[str(file), {**{key: text for key, text in given.items() if text}, **switches}],
            remappings=[(topic, value(f"grounding_{topic}")) for topic in TOPIC_ARGUMENTS],
            # Only for this node's own logger: at level debug, the middleware logs far more than the node.
            ros_arguments=["--log-level", f"{name.strip('/').replace('/', '.')}:={level}"],
            respawn=value("grounding_respawn") == "true",
            respawn_delay=2.0,
            output="screen",
        )
    ]
    if value("grounding_rviz") == "true":
        rviz = Node(
            package="rviz2",
            executable="rviz2",
            namespace=namespace,
            parameters=[{"use_sim_time": switches["use_sim_time"]}],
            arguments=["-d", _rviz_config(name, value("grounding_fixed_frame"))],
        )
        nodes.append(rviz)
    return nodes


def _rviz_config(node: str, frame: str) -> str:
    """Write RViz's layout for this node, because layouts contain absolute names; returns its path."""
    layout = (SHARE / "rviz" / "grounding.rviz").read_text()
    namespace = node.removesuffix("/grounding")
    layout = layout.replace("/pick/", f"{namespace}/pick/").replace(": /grounding/", f": {node}/")
    layout = layout.replace("camera_optical_frame", frame)
    with tempfile.NamedTemporaryFile("w", prefix="grounding_", suffix=".rviz", delete=False) as file:
        file.write(layout)
    return file.name


def generate_launch_description() -> LaunchDescription:
    """Arguments, node and RViz."""
    arguments = {
        **{f"grounding_{name}": ("", text) for name, text in MODEL_ARGUMENTS.items()},
        **{f"grounding_{name}": (name, f"topic of the {text}") for name, text in TOPIC_ARGUMENTS.items()},
        "grounding_params_file": (str(SHARE / "config" / "grounding.yaml"), "YAML file of the node's parameters"),
        "grounding_fixed_frame": ("camera_optical_frame", "frame in which RViz draws"),
        "namespace": ("", "namespace of the node"),
        "log_level": ("info", "level of the node's own log: debug, info, warn, error"),
    }
    switches = {
        "grounding_rviz": ("false", "show overlay, label mask, points and markers in RViz"),
        "grounding_respawn": ("false", "restart the node when it dies"),
        "autostart": (
            "true",
            "load the model and accept commands at start; false: wait for a manager to configure and activate",
        ),
        "use_sim_time": ("false", "take the time from /clock, for bags and simulators"),
    }
    return LaunchDescription(
        [
            *(DeclareLaunchArgument(name, default_value=d, description=text) for name, (d, text) in arguments.items()),
            *(
                DeclareLaunchArgument(name, default_value=d, description=text, choices=SWITCH)
                for name, (d, text) in switches.items()
            ),
            OpaqueFunction(function=_nodes),
        ]
    )
