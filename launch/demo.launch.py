"""The simulated camera, the grounding node on its images, and the picking example; ends when one of these three ends.

With ``grounding_respawn:=true`` the grounding node is started again instead. Other processes, such as RViz, may end.

For instance::

    ros2 launch flmm_ros demo.launch.py demo_seed:=7 grounding_rviz:=true
    ros2 topic pub --once /command std_msgs/msg/String "{data: 'what is on the table?'}"
    ros2 param set /camera seed 8

Arguments of grounding.launch.py other than the camera's topics are passed on; ``namespace`` and ``use_sim_time`` hold for all
three nodes.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import Action, LaunchContext, LaunchDescription
from launch.actions import (
    DeclareLaunchArgument,
    GroupAction,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
    Shutdown,
)
from launch.event_handlers import OnProcessExit
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from flmm_ros.launch_arguments import full_namespace, switch

SHARE = Path(get_package_share_directory("flmm_ros"))


def _camera_and_pick(context: LaunchContext) -> list[Action]:
    """The nodes beside the grounding node, in its namespace and with its clock, and the end of all when one ends."""

    def value(name: str) -> str:
        return LaunchConfiguration(name, default="").perform(context)

    namespace = full_namespace(value("ros_namespace"), value("namespace"))
    simulated = switch("use_sim_time", value("use_sim_time"))
    clock = {} if simulated is None else {"use_sim_time": simulated}
    scene = {
        "seed": ParameterValue(LaunchConfiguration("demo_seed"), value_type=int),
        "rate": ParameterValue(LaunchConfiguration("demo_rate"), value_type=float),
    }
    camera = {"executable": "camera_node", "name": "camera", "parameters": [scene | clock]}
    pick = {"executable": "pick", "name": "pick", "parameters": [clock] if clock else []}
    needed = {"camera_node", "pick"}
    if not switch("grounding_respawn", value("grounding_respawn")):
        needed.add("grounding_node")
    ended = OnProcessExit(
        target_action=lambda action: isinstance(action, Node) and action.node_executable in needed,
        on_exit=[Shutdown(reason="a node of the demo has ended")],
    )
    nodes = [Node(package="flmm_ros", namespace=namespace, output="screen", **node) for node in (camera, pick)]
    return [RegisterEventHandler(ended), *nodes]


def generate_launch_description() -> LaunchDescription:
    """Camera, grounding node and picking example."""
    grounding = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(SHARE / "launch" / "grounding.launch.py")),
        launch_arguments={f"grounding_{topic}": f"camera/{topic}" for topic in ("image", "depth", "camera_info")}.items(),
    )
    return LaunchDescription(
        [
            DeclareLaunchArgument("demo_seed", default_value="0", description="seed of the scene that the camera shows"),
            DeclareLaunchArgument("demo_rate", default_value="5.0", description="images per second"),
            GroupAction([grounding, OpaqueFunction(function=_camera_and_pick)]),
        ]
    )
