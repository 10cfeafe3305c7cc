"""A simulated camera over a table, and the grounding node that looks at it.

For instance::

    ros2 launch flmm_ros demo.launch.py seed:=7 rviz:=true
    ros2 topic pub --once /command std_msgs/msg/String "{data: what is on the table?}"
    ros2 param set /camera seed 8

Arguments of grounding.launch.py other than the camera's topics are passed on.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

SHARE = Path(get_package_share_directory("flmm_ros"))


def generate_launch_description() -> LaunchDescription:
    """Camera and node."""
    camera = Node(
        package="flmm_ros",
        executable="camera_node",
        name="camera",
        parameters=[
            {
                "seed": ParameterValue(LaunchConfiguration("seed"), value_type=int),
                "rate": ParameterValue(LaunchConfiguration("rate"), value_type=float),
            }
        ],
        output="screen",
    )
    grounding = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(SHARE / "launch" / "grounding.launch.py")),
        launch_arguments={topic: f"/camera/{topic}" for topic in ("image", "depth", "camera_info")}.items(),
    )
    return LaunchDescription(
        [
            DeclareLaunchArgument("seed", default_value="0", description="which scene the camera shows"),
            DeclareLaunchArgument("rate", default_value="5.0", description="images a second"),
            camera,
            grounding,
        ]
    )
