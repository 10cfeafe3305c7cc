"""docs/reference.md against the code: make targets, commands, launch files, topics, parameters, messages, file tree."""

import argparse
import ast
import re

import pytest
from documents import REFERENCE, ROOT, document, loaded_script, names, section, table, tables, tracked

from flmm_core.config import tunables

NO_ROS = "rclpy is not installed, or the messages of flmm_ros are not built: `make setup`"


@pytest.fixture(scope="module")
def file_tree():
    return loaded_script("write_file_tree")


def reference(*titles):
    return table(document(REFERENCE), *titles)


# --- make targets, commands, launch files ---------------------------------------------------------------------------------


def test_make_targets():
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
    assert sorted(names(row[0])[0].removeprefix("make ") for row in reference("Make targets")) == sorted(targets)


def test_commands():
    from flmm_cli.main import declare

    subparsers = argparse.ArgumentParser().add_subparsers()
    declare(subparsers)
    assert [names(row[0])[0] for row in reference("Commands")] == [f"flmm {name}" for name in subparsers.choices]


def test_extras():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    extras = re.findall(r"^optional-dependencies\.(\w+) ", text, re.M)
    assert [names(row[0])[0] for row in reference("Packages and extras")] == extras


def test_launch_arguments():
    rows = {names(row[0])[0]: set(names(row[2])) for row in reference("Launch files")}
    assert set(rows) == {path.name for path in (ROOT / "launch").glob("*.launch.py")}
    declared = {name: launch_arguments(name) for name in rows}
    assert rows["grounding.launch.py"] == declared["grounding.launch.py"]
    fixed = {"grounding.launch.py", "grounding_image", "grounding_depth", "grounding_camera_info"}
    assert rows["demo.launch.py"] == declared["demo.launch.py"] | fixed


def launch_arguments(name):
    """Arguments that a launch file declares: literal names, and the keys of the tables in its last function."""
    found = set()
    tree = ast.parse((ROOT / "launch" / name).read_text(encoding="utf-8"))
    tables = {
        node.targets[0].id: [f"grounding_{key}" for key in ast.literal_eval(node.value)]
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id.endswith("_ARGUMENTS")
    }
    (declares,) = (n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == "generate_launch_description")
    for node in ast.walk(declares):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "DeclareLaunchArgument":
            found |= {node.args[0].value} if isinstance(node.args[0], ast.Constant) else set()
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            found |= {key.value for key in node.value.keys if isinstance(key, ast.Constant)}
        if isinstance(node, ast.Name) and node.id in tables:
            found |= set(tables[node.id])
    return found


# --- topics ---------------------------------------------------------------------------------------------------------------


def test_inputs_are_known():
    """Those that the shell blocks of the documents may remap, as test_documentation.py lists them."""
    inputs = {names(name)[0] for name, direction, *_ in reference("Topics", "grounding_node") if direction == "in"}
    assert inputs == {
        "image", "image/compressed", "depth", "depth/compressedDepth", "camera_info", "command", "phrase", "~/watch"
    }  # fmt: skip


def test_encodings():
    conversions = pytest.importorskip("flmm_ros.conversions", reason=NO_ROS)
    sentence = re.search(r"Encodings that `image` may have:(.*?)\.\n", document(REFERENCE), re.S)
    assert tuple(names(sentence[1])) == conversions.SUPPORTED_ENCODINGS


# --- parameters -----------------------------------------------------------------------------------------------------------


def parameter_row(entry, live):
    if entry.type is bool:
        default = str(entry.default).lower()
    else:
        default = f"{entry.default:g}" if entry.type is float else str(entry.default) or "''"
    allowed = ", ".join(entry.choices)
    if entry.minimum is not None:
        number = "{:g}" if entry.type is float else "{}"
        allowed = f"{number.format(entry.minimum)} to {number.format(entry.maximum)} {entry.unit}".strip()
    return [f"`{entry.name}`", entry.type.__name__, f"`{default}`", allowed, "yes" if live else "no"]


def test_parameters_of_the_grounding_node():
    parameters = pytest.importorskip("flmm_ros.parameters", reason=NO_ROS)
    entries = (*tunables(), *parameters.NODE_TUNABLES)
    rows = reference("Parameters", "grounding_node")
    assert [row[:5] for row in rows] == [parameter_row(entry, entry.name in parameters.CHANGEABLE) for entry in entries]
    assert all(row[5] for row in rows)


def test_parameters_of_the_camera():
    camera = pytest.importorskip("flmm_ros.camera", reason=NO_ROS)
    rows = reference("Parameters", "camera_node")
    assert [row[:5] for row in rows] == [parameter_row(entry, entry.name == "seed") for entry in camera.CAMERA_TUNABLES]


@pytest.mark.parametrize("node", ["voice", "pick"])
def test_parameters_of_other_nodes(node):
    module = pytest.importorskip(f"flmm_ros.{node}", reason=NO_ROS)
    live = {"pick": {"verbs", "max_opening", "standoff"}}.get(node, set())
    entries = getattr(module, f"{node.upper()}_TUNABLES")
    rows = reference("Parameters", f"{node}_node")
    assert [row[:5] for row in rows] == [parameter_row(entry, entry.name in live) for entry in entries]


def test_parameters_that_are_options_too():
    last = list(tunables())[-1].name
    assert f"Those from `lmm` to `{last}` are also options of" in document(REFERENCE)


# --- messages -------------------------------------------------------------------------------------------------------------


def message_entries(path):
    """Fields and constants of a message file."""
    fields, constants = [], {}
    for line in path.read_text(encoding="utf-8").splitlines():
        words = line.split("#")[0].split()
        if len(words) == 2 and "=" in words[1]:
            name, value = words[1].split("=")
            constants[name] = int(value)
        elif len(words) == 2:
            fields.append(words[1])
    return fields, constants


def test_messages():
    fields, statuses = tables(section(document(REFERENCE), "Messages"))
    documented = {re.search(r"msg/(\w+)\.msg\)", row[0])[1]: names(row[1]) for row in fields}
    assert documented == {path.stem: message_entries(path)[0] for path in sorted((ROOT / "msg").glob("*.msg"))}
    constants = message_entries(ROOT / "msg" / "GroundedAnswer.msg")[1]
    expected = {name: value for name, value in constants.items() if name.startswith("STATUS_")}
    assert {names(name)[0]: int(value) for name, value, _, retry in statuses if retry or value == "0"} == expected


# --- file tree ------------------------------------------------------------------------------------------------------------


def test_tree_is_up_to_date(file_tree):
    assert file_tree.with_tree(document(REFERENCE)) == document(REFERENCE), "run scripts/write_file_tree.py"


def test_tree_has_everything_at_the_top(file_tree):
    listed = {line.split()[0] for line in file_tree.lines() if not line.startswith(" ")}
    top = {path.split("/")[0] + ("/" if "/" in path else "") for path in tracked()}
    extras = {name for name in top if re.fullmatch(r"requirements-\w+\.txt", name)}
    assert not sorted(top - extras - listed), "top-level entries missing in OTHERS of scripts/write_file_tree.py"
    assert not sorted(listed - top), "entries of OTHERS that are not there"
