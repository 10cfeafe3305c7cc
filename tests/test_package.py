"""What the package says in more than one place is the same everywhere."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from flmm_cli.main import COMMANDS
from flmm_cli.main import main as flmm

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGE = ElementTree.parse(ROOT / "package.xml").getroot()


def test_name_and_version():
    assert PACKAGE.findtext("name") == PROJECT["project"]["name"] == "flmm_ros"
    assert PACKAGE.findtext("version") == PROJECT["project"]["version"]
    assert PACKAGE.findtext("license") == PROJECT["project"]["license"]


def test_every_message_is_built_and_every_field_is_explained():
    cmake = (ROOT / "CMakeLists.txt").read_text()
    for path in (ROOT / "msg").glob("*.msg"):
        assert f'"msg/{path.name}"' in cmake
        explained = False
        for line in path.read_text().splitlines():
            if line.startswith("#"):
                explained = True
            elif not line.strip():
                explained = False
            else:
                assert "#" in line or explained, f"{path.name}: {line}"


def test_every_package_is_installed_by_cmake():
    packages = {path.parent.name for path in ROOT.glob("flmm_*/__init__.py")}
    installed = re.search(r"install\(DIRECTORY (flmm[^\n]*)", (ROOT / "CMakeLists.txt").read_text()).group(1).split()
    assert set(installed) == packages
    for script in ("grounding_node", "camera_node", "flmm"):
        assert (ROOT / "scripts" / script).stat().st_mode & 0o111
        ast.parse((ROOT / "scripts" / script).read_text())


ROS = {"rclpy", "rcl_interfaces", "sensor_msgs", "std_msgs", "builtin_interfaces", "cv_bridge"}
MAY_IMPORT = {
    "flmm_core": set(),
    "flmm_tabletop": {"flmm_core"},
    "flmm_sim": {"flmm_core"},
    "flmm_ros": {"flmm_core", "flmm_tabletop", "flmm_sim", *ROS},
    "flmm_cli": {"flmm_core", "flmm_tabletop", "flmm_sim", "flmm_ros", *ROS},
}
"""What each package may import of the others and of ROS; nothing imports what is above it."""


def imported_packages(path):
    """Top-level names of everything that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_layers(package):
    files = list((ROOT / package).rglob("*.py"))
    assert len(files) > 5
    forbidden = {*MAY_IMPORT, *ROS} - {package} - MAY_IMPORT[package]
    for path in files:
        assert not forbidden & set(imported_packages(path)), path


def test_every_package_has_its_layer():
    assert set(MAY_IMPORT) == {path.parent.name for path in ROOT.glob("flmm_*/__init__.py")}


def test_simulation_and_evaluation_know_nothing_of_training():
    for folder in ("flmm_sim", "flmm_core/evaluation", "flmm_core/data", "flmm_core/drawing"):
        for path in (ROOT / folder).rglob("*.py"):
            assert "flmm_core.training" not in path.read_text(encoding="utf-8"), path


def test_parameter_file_holds_every_parameter_and_its_default():
    pytest.importorskip("rclpy", reason="rclpy is not installed")
    yaml = pytest.importorskip("yaml")
    from flmm_core.config import tunables
    from flmm_ros.parameters import NODE_TUNABLES

    given = yaml.safe_load((ROOT / "config" / "grounding.yaml").read_text())["/**"]["ros__parameters"]
    assert given == {entry.name: entry.default for entry in (*tunables(), *NODE_TUNABLES)}


@pytest.mark.parametrize("path", sorted((ROOT / "launch").glob("*.py")), ids=lambda path: path.name)
def test_launch_file_is_python(path):
    tree = ast.parse(path.read_text())
    assert any(isinstance(node, ast.FunctionDef) and node.name == "generate_launch_description" for node in tree.body)


@pytest.mark.parametrize("path", sorted((ROOT / "launch").glob("*.py")), ids=lambda path: path.name)
def test_launch_file_describes_itself(path, monkeypatch):
    reason = "needs launch_ros, which only a ROS 2 distribution has"
    pytest.importorskip("launch", reason=reason)
    pytest.importorskip("launch_ros", reason=reason)
    packages = importlib.import_module("ament_index_python.packages")
    monkeypatch.setattr(packages, "get_package_share_directory", lambda _: str(ROOT))
    spec = importlib.util.spec_from_file_location("launch_file", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.generate_launch_description().entities


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as end:
        flmm([name.replace("_", "-"), "--help"])
    assert end.value.code == 0
    assert len(capsys.readouterr().out) > 100


def test_wrong_arguments_end_with_status_2(capsys):
    for arguments in ([], ["no-such-command"], ["ask"], ["ask", "hello", "--timeout", "soon"]):
        with pytest.raises(SystemExit) as end:
            flmm(arguments)
        assert end.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_help_answers_at_once():
    loaded = "import sys; from flmm_cli.main import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    loaded += "print([name for name in ('torch', 'rclpy', 'mujoco', 'transformers') if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"
