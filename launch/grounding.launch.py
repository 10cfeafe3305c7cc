"""The grounding node, for a camera that is already there.

For instance::

    ros2 launch flmm_ros grounding.launch.py grounding_image:=/camera/image_raw
    ros2 launch flmm_ros grounding.launch.py grounding_lmm:=llava-hf/llava-1.5-7b-hf grounding_heads:=... grounding_rviz:=true

A launch file that includes another one shares its arguments' names with it. So those that mean something to this node alone
begin with ``grounding_``; the others mean the same to every node.
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
"""Inputs of the node; each argument is the topic to read instead."""

SWITCH = ["true", "false"]


def _nodes(context: LaunchContext) -> list[Node]:
    """The node, and RViz on request; only model arguments that were given override the parameter file."""

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
            # Of this node's own logger: debug for all would drown it in the middleware's.
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
    """RViz's layout for this node: layouts hold absolute names."""
    layout = (SHARE / "rviz" / "grounding.rviz").read_text()
    space = node.removesuffix("/grounding")
    layout = layout.replace("/pick/", f"{space}/pick/").replace(": /grounding/", f": {node}/")
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
        "log_level": ("info", "of the node's own log: debug, info, warn, error"),
    }
    switches = {
        "grounding_rviz": ("false", "show overlay, label mask, points and markers in RViz"),
        "grounding_respawn": ("false", "start the node again when it dies"),
        "autostart": ("true", "load the model and take commands at once; false: a manager configures and activates the node"),
        "use_sim_time": ("false", "time comes from /clock: for bags and simulators"),
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
