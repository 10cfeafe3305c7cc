"""The grounding node, for a camera that is already there.

For instance::

    ros2 launch flmm_ros grounding.launch.py image:=/camera/image_raw
    ros2 launch flmm_ros grounding.launch.py lmm:=llava-hf/llava-1.5-7b-hf heads:=... sam:=... device:=cuda rviz:=true
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

SHARE = Path(get_package_share_directory("flmm_ros"))

MODEL_ARGUMENTS = {
    "lmm": "LMM: a folder or a Hugging Face name; empty: as in params_file",
    "heads": "grounding heads: a folder or file; empty: as in params_file",
    "sam": "SAM: a folder or file; empty: as in params_file",
    "device": "auto, cpu, cuda, cuda:1, ...; empty: as in params_file",
}
TOPIC_ARGUMENTS = {
    "image": "camera images",
    "depth": "depth of the images, registered to them",
    "camera_info": "intrinsics of the images",
    "command": "questions",
    "phrase": "phrases to ground",
}
"""Inputs of the node; each argument is the topic to read instead."""


def _node(context: LaunchContext) -> list[Node]:
    """The node; only model arguments that were given override the parameter file."""
    given = {name: LaunchConfiguration(name).perform(context) for name in MODEL_ARGUMENTS}
    parameters = [LaunchConfiguration("params_file").perform(context), {k: v for k, v in given.items() if v}]
    return [
        Node(
            package="flmm_ros",
            executable="grounding_node",
            name="grounding",
            namespace=LaunchConfiguration("namespace").perform(context),
            parameters=[entry for entry in parameters if entry],
            remappings=[(name, LaunchConfiguration(name).perform(context)) for name in TOPIC_ARGUMENTS],
            arguments=["--ros-args", "--log-level", LaunchConfiguration("log_level").perform(context)],
            output="screen",
        )
    ]


def generate_launch_description() -> LaunchDescription:
    """Node, and RViz on request."""
    arguments = [DeclareLaunchArgument(name, default_value="", description=text) for name, text in MODEL_ARGUMENTS.items()]
    arguments += [
        DeclareLaunchArgument(name, default_value=name, description=f"topic of the {text}")
        for name, text in TOPIC_ARGUMENTS.items()
    ]
    arguments += [
        DeclareLaunchArgument("namespace", default_value="", description="namespace of the node"),
        DeclareLaunchArgument(
            "params_file", default_value=str(SHARE / "config" / "grounding.yaml"), description="YAML file of parameters"
        ),
        DeclareLaunchArgument("log_level", default_value="info", description="debug, info, warn, error"),
        DeclareLaunchArgument("rviz", default_value="false", description="show overlay and label mask in RViz"),
    ]
    rviz = Node(
        package="rviz2",
        executable="rviz2",
        arguments=["-d", str(SHARE / "rviz" / "grounding.rviz")],
        condition=IfCondition(LaunchConfiguration("rviz")),
    )
    return LaunchDescription([*arguments, OpaqueFunction(function=_node), rviz])
