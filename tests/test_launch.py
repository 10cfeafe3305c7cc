"""The launch files, started: what each node gets on its command line. On the real ``launch`` where there is one."""

import re

import pytest

pytest.importorskip("ament_index_python", reason="ament_index_python is not installed: `make setup`")

from launch_runner import REAL, ROOT, Launcher

EXECUTABLES = {"flmm_ros": ("grounding_node", "camera_node", "pick"), "rviz2": ("rviz2",)}
PUSHED = (
    'def generate_launch_description():\n    return LaunchDescription([DeclareLaunchArgument("namespace", default_value=""), '
)


@pytest.fixture
def launcher(tmp_path):
    return Launcher(tmp_path, EXECUTABLES)


def parent(*actions):
    """A launch file that declares an argument ``namespace`` and runs actions."""
    return f"{PUSHED}{', '.join(actions)}])\n"


def test_what_was_not_given_is_not_passed(launcher):
    nodes, said = launcher.run("grounding.launch.py")
    assert set(nodes) == {"grounding_node"}, said
    assert nodes["grounding_node"].words == ["--ros-args", "-r", "__node:=grounding", "-r", "__ns:=/"]


def test_what_was_given_is_passed(launcher):
    nodes, said = launcher.run(
        "grounding.launch.py",
        "grounding_image:=/camera/image_raw",
        "grounding_lmm:=models/my lmm",
        "grounding_device:=cuda:1",
        "autostart:=false",
        "log_level:=debug",
    )
    node = nodes["grounding_node"]
    assert node.parameters == {"lmm": "models/my lmm", "device": "cuda:1", "autostart": False}, said
    assert node.remapped == {"__node": "grounding", "__ns": "/", "image": "/camera/image_raw"}
    assert node.given("--log-level") == ["grounding:=debug"]


def test_a_parents_parameters_reach_the_node(launcher):
    actions = ('SetParameter("use_sim_time", True)', 'SetParameter("lmm", "theirs")', 'SetParameter("autostart", False)')
    nodes, said = launcher.run(parent(*actions, "include()"))
    assert nodes["grounding_node"].parameters == {"use_sim_time": True, "lmm": "theirs", "autostart": False}, said
    nodes, said = launcher.run(parent(*actions, 'include(grounding_lmm="mine", autostart="true")'))
    assert nodes["grounding_node"].parameters == {"use_sim_time": True, "lmm": "mine", "autostart": True}, said


@pytest.mark.parametrize("node", ["/**", "grounding"])
def test_a_file_of_parameters_counts(launcher, tmp_path, node):
    file = tmp_path / "mine.yaml"
    file.write_text(f"{node}:\n  ros__parameters: {{use_sim_time: true, autostart: false, lmm: theirs, image_cache: 7}}\n")
    given = f"grounding_params_file:={file}"
    nodes, said = launcher.run("grounding.launch.py", given, "grounding_rviz:=true")
    expected = {"use_sim_time": True, "autostart": False, "lmm": "theirs", "image_cache": 7}
    assert nodes["grounding_node"].parameters == expected, said
    assert nodes["rviz2"].parameters.get("use_sim_time") is (True if node == "/**" else None)
    nodes, said = launcher.run("grounding.launch.py", given, "grounding_lmm:=mine", "use_sim_time:=false", "autostart:=true")
    expected |= {"use_sim_time": False, "autostart": True, "lmm": "mine"}
    assert nodes["grounding_node"].parameters == expected, said


def test_a_file_that_is_not_there_starts_nothing(launcher):
    nodes, said = launcher.run("grounding.launch.py", "grounding_params_file:=nowhere.yaml")
    assert not nodes and "grounding_params_file: expected an existing file, got nowhere.yaml" in said


def test_switches_as_people_write_them(launcher):
    nodes, said = launcher.run("grounding.launch.py", "use_sim_time:=True", "autostart:=FALSE", "grounding_rviz:=1")
    assert nodes["grounding_node"].parameters == {"use_sim_time": True, "autostart": False}, said
    assert nodes["rviz2"].parameters == {"use_sim_time": True}
    nodes, said = launcher.run("grounding.launch.py", "grounding_respawn:=yes")
    assert not nodes and "grounding_respawn: expected true or false, got 'yes'" in said


def test_levels_of_the_log(launcher):
    nodes, said = launcher.run("grounding.launch.py", "log_level:=WARN")
    assert nodes["grounding_node"].given("--log-level") == ["grounding:=WARN"], said
    nodes, said = launcher.run("grounding.launch.py", "log_level:=verbose")
    assert not nodes and "log_level: expected debug, info, warn, error or fatal, got 'verbose'" in said


# --- namespaces -----------------------------------------------------------------------------------------------------------

OWN = 'PushRosNamespace(LaunchConfiguration("namespace"))'


@pytest.mark.parametrize(
    ("actions", "namespace", "expected"),
    [
        ((), "robot1", "/robot1"),
        ((OWN,), "robot1", "/robot1"),
        (('PushRosNamespace("fleet")',), "robot1", "/fleet/robot1"),
        (('PushRosNamespace("fleet")',), "", "/fleet"),
        ((OWN, 'PushRosNamespace("head")'), "robot1", "/robot1/head"),
        (('PushRosNamespace("fleet")',), "fleet2", "/fleet/fleet2"),
    ],
)
def test_namespaces(launcher, actions, namespace, expected):
    given = [f"namespace:={namespace}", "log_level:=debug", "grounding_rviz:=true", "grounding_fixed_frame:=map"]
    nodes, said = launcher.run(parent(*actions, "include()"), *given)
    node, rviz = nodes["grounding_node"], nodes["rviz2"]
    assert node.name == f"{expected}/grounding", said
    assert node.given("--log-level") == [f"{expected[1:].replace('/', '.')}.grounding:=debug"]
    topics = re.findall(r": (/\S+)", (ROOT / "rviz" / "grounding.rviz").read_text())
    assert len(topics) >= 5
    assert {topic: rviz.remapped[topic] for topic in topics} == {topic: expected + topic for topic in topics}
    assert rviz.given("-d") == [str(launcher.share / "rviz" / "grounding.rviz")] and rviz.given("-f") == ["map"]
    assert not list(launcher.temporary.iterdir()), "a file is left for each start"


@pytest.mark.parametrize("file", ["grounding.launch.py", "demo.launch.py"])
@pytest.mark.parametrize("namespace", ["robot-1", "1st", "a//b", "a b", "~/a"])
def test_a_namespace_that_ros_does_not_know_starts_nothing(launcher, file, namespace):
    nodes, said = launcher.run(file, f"namespace:={namespace}")
    assert not nodes and f"namespace: expected names of letters, digits and _ between slashes, got {namespace!r}" in said


def test_the_demo_is_in_one_namespace(launcher):
    nodes, said = launcher.run("demo.launch.py", "namespace:=robot1", "use_sim_time:=True", "demo_seed:=7", "log_level:=debug")
    assert {node.name for node in nodes.values()} == {"/robot1/camera", "/robot1/grounding", "/robot1/pick"}, said
    assert all(node.parameters["use_sim_time"] is True for node in nodes.values())
    assert nodes["camera_node"].parameters == {"seed": 7, "rate": 5.0, "use_sim_time": True}
    node = nodes["grounding_node"]
    assert {name: node.remapped[name] for name in ("image", "depth", "camera_info")} == {
        "image": "camera/image",
        "depth": "camera/depth",
        "camera_info": "camera/camera_info",
    }, "relative to the namespace"
    assert node.given("--log-level") == ["robot1.grounding:=debug"]


@pytest.mark.skipif(REAL, reason="only the stand-in prints the reason of a shutdown")
def test_the_demo_ends_with_its_nodes_and_not_with_others(launcher):
    ends = "shutdown: a node of the demo has ended"
    assert launcher.run("demo.launch.py", "grounding_rviz:=true")[1].count(ends) == 3, "not with RViz"
    assert launcher.run("demo.launch.py", "grounding_respawn:=true")[1].count(ends) == 2, "nor with what is started again"
    assert ends not in launcher.run(parent('include("grounding")'))[1]


def test_the_demo_passes_nothing_that_was_not_given(launcher):
    nodes, said = launcher.run(parent('PushRosNamespace("lab")', 'SetParameter("use_sim_time", True)', 'include("demo")'))
    assert {node.name for node in nodes.values()} == {"/lab/camera", "/lab/grounding", "/lab/pick"}, said
    assert nodes["grounding_node"].parameters == nodes["pick"].parameters == {"use_sim_time": True}
    assert nodes["camera_node"].parameters == {"seed": 0, "rate": 5.0, "use_sim_time": True}


# --- RViz -----------------------------------------------------------------------------------------------------------------


def test_a_robot_without_rviz_is_told_the_package(tmp_path):
    headless = Launcher(tmp_path, {"flmm_ros": EXECUTABLES["flmm_ros"]})
    nodes, said = headless.run("grounding.launch.py")
    assert set(nodes) == {"grounding_node"}, said
    nodes, said = headless.run("grounding.launch.py", "grounding_rviz:=true")
    assert "grounding_rviz: expected RViz, which is not installed: apt-get install ros-kilted-rviz2" in said
    assert not nodes
