"""What the package says in more than one place is the same everywhere."""

import argparse
import ast
import importlib
import re
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from flmm_cli.main import declare
from flmm_cli.main import main as flmm

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGE = ElementTree.parse(ROOT / "package.xml").getroot()


def test_name_and_version():
    assert PACKAGE.findtext("name") == PROJECT["project"]["name"] == "flmm_ros"
    assert PACKAGE.findtext("version") == PROJECT["project"]["version"]
    assert PACKAGE.findtext("license") == PROJECT["project"]["license"]


ROSDEP_KEYS = {
    "cv2": "python3-opencv",
    "mujoco": "python3-mujoco-pip",
    "numpy": "python3-numpy",
    "PIL": "python3-pil",
    "scipy": "python3-scipy",
    "tf2_ros": "tf2_ros_py",
    "torch": "python3-pytorch-pip",
    "tqdm": "python3-tqdm",
    "transformers": "python3-transformers-pip",
}
"""By the name of the import; packages of ROS have the names of their modules."""

EXTRAS = ("sim", "train", "eval", "export", "onnx", "quantization", "bag", "voice", "web", "fleet", "gpu", "dev")

PIP_ALONE = {"accelerate", "httpx", "huggingface_hub", "pycocotools", "safetensors", "segment_anything", "tokenizers"}
"""Imports that no rosdep key brings."""

OPTIONAL = {
    "spacy",
    "pycocoevalcap",
    "onnx",
    "onnxruntime",
    "tensorrt",
    "triton",
    "mcap",
    "lz4",
    "zstandard",
    "pocketsphinx",
    "gradio",
    "ray",
    "starlette",
    "uvicorn",
    "faster_whisper",
    "sounddevice",
}
"""Imports that are used where they are installed."""

SIMULATION_AND_TRAINING = (
    "mujoco",
    "OpenGL",
    "scipy",
    "accelerate",
    "pycocotools",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "tensorrt",
)
"""Imports that a robot does without."""


def requirements_of(name):
    lines = (ROOT / name).read_text().splitlines()
    return [re.match(r"[\w-]+", line)[0].lower() for line in lines if line and not line.startswith("#")]


def test_extras_are_requirement_files_and_hardly_a_package_is_in_two():
    dynamic = PROJECT["tool"]["setuptools"]["dynamic"]
    extras = dynamic["optional-dependencies"]
    assert {name: given["file"] for name, given in extras.items()} == {name: [f"requirements-{name}.txt"] for name in EXTRAS}
    assert dynamic["dependencies"]["file"] == ["requirements.txt"]
    packages = [package for path in ROOT.glob("requirements*.txt") for package in requirements_of(path.name)]
    twice = {package for package in packages if packages.count(package) > 1}
    assert twice == {"accelerate"}, "which training and quantized LMMs need, each without the other"


def test_setup_installs_all_requirements_but_those_of_gpus_and_of_the_site():
    spec = importlib.util.spec_from_file_location("setup_env", ROOT / "scripts" / "setup_env.py")
    setup_env = importlib.util.module_from_spec(spec)
    sys.modules["setup_env"] = setup_env  # dataclasses look their module up
    try:
        spec.loader.exec_module(setup_env)
    finally:
        del sys.modules["setup_env"]
    others = {ROOT / "requirements-gpu.txt", ROOT / "requirements-docs.txt"}  # engines for GPUs; installed by `make docs`
    assert {*setup_env.REQUIREMENTS, *others} == {*ROOT.glob("requirements*.txt")}


def without(blocked, code):
    """Run Python code in a process that has none of the ``blocked`` packages."""
    blocking = f"import sys\nsys.modules.update(dict.fromkeys({blocked}))\n"
    done = subprocess.run([sys.executable, "-c", blocking + code], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    "modules", ["flmm_core.pipeline, flmm_core.drawing.overlay", "flmm_ros.grounding, flmm_ros.grounding_node, flmm_ros.client"]
)
def test_a_robot_needs_neither_simulation_nor_training(modules):
    if modules.startswith("flmm_ros."):
        pytest.importorskip("rclpy", reason="rclpy is not installed: `make setup`")
        pytest.importorskip("flmm_ros.msg", reason="the messages of flmm_ros are not built: `make setup`")
    loaded = f"import {modules}\nprint([name for name in {SIMULATION_AND_TRAINING} if sys.modules[name]])"
    assert without(SIMULATION_AND_TRAINING, loaded) == "[]\n"


def test_what_a_command_lacks_is_said_with_the_extra_that_brings_it():
    code = "from flmm_cli.main import main\nassert main(['scenes', '--out', '/nowhere']) == 1\n"
    code = "import contextlib, io\nwith contextlib.redirect_stderr(io.StringIO()) as said:\n    " + code.replace("\n", "\n    ")
    for package, extra in (("mujoco", "sim"), ("pycocotools", "train")):
        said = without((package,), code + "\nprint(said.getvalue())")
        assert f"flmm scenes: {package} is not installed: expected flmm_ros with its extra [{extra}]" in said


def imports(folders):
    """Top-level names of the third-party packages that Python files import anywhere."""
    found = set()
    for path in (path for folder in folders for path in folder.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(node.module.split(".")[0])
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "importlib.import_module":
                found |= {word.value.split(".")[0] for word in node.args if isinstance(word, ast.Constant)}
    return {name for name in found if name not in sys.stdlib_module_names and not name.startswith("flmm_")}


def test_package_xml_declares_every_import():
    declared = {node.text for node in PACKAGE if node.tag in ("depend", "exec_depend")}
    used = imports([ROOT / "launch", *(path.parent for path in ROOT.glob("flmm_*/__init__.py"))])
    assert used >= PIP_ALONE | OPTIONAL
    assert {ROSDEP_KEYS.get(name, name) for name in used - PIP_ALONE - OPTIONAL} <= declared


def test_a_robot_without_a_screen_gets_no_rviz():
    """The launch file names its package where it is asked for."""
    assert "rviz2" not in {node.text for node in PACKAGE}


def test_rosdep_installs_the_simulation_on_request_alone():
    catkin_pkg = pytest.importorskip("catkin_pkg.package", reason="catkin_pkg is not installed: `make setup`")
    package = catkin_pkg.parse_package(str(ROOT / "package.xml"))
    simulation = {"python3-mujoco-pip", "python3-opengl", "python3-scipy"}
    for asked, expected in (({}, set()), ({"FLMM_SIM": "1"}, simulation)):
        package.evaluate_conditions(asked)
        assert {entry.name for entry in package.exec_depends if entry.evaluated_condition} & simulation == expected


def test_every_message_is_built_and_every_field_is_explained():
    cmake = (ROOT / "CMakeLists.txt").read_text()
    for path in (*(ROOT / "msg").glob("*.msg"), *(ROOT / "action").glob("*.action")):
        assert f'"{path.parent.name}/{path.name}"' in cmake
        explained = False
        for line in path.read_text().splitlines():
            if line.startswith("#"):
                explained = True
            elif not line.strip() or line == "---":
                explained = False
            else:
                assert "#" in line or explained, f"{path.name}: {line}"


def test_every_package_is_installed_by_cmake():
    packages = {path.parent.name for path in ROOT.glob("flmm_*/__init__.py")}
    installed = re.search(r"install\(DIRECTORY (flmm[^\n]*)", (ROOT / "CMakeLists.txt").read_text()).group(1).split()
    assert set(installed) == packages
    for script in ("grounding_node", "camera_node", "pick", "voice", "flmm"):
        assert (ROOT / "scripts" / script).stat().st_mode & 0o111
        ast.parse((ROOT / "scripts" / script).read_text())


def test_pip_installs_the_files_that_are_no_code():
    data = PROJECT["tool"]["setuptools"]["package-data"]
    tracked = subprocess.run(["git", "ls-files", "flmm_*"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    others = {name for name in tracked if not name.endswith(".py")}
    packed = {path.relative_to(ROOT).as_posix() for name in data for glob in data[name] for path in (ROOT / name).glob(glob)}
    assert "flmm_ros/fastdds.xml" in others and others <= packed, others - packed


ROS = {"rclpy", "rcl_interfaces", "sensor_msgs", "std_msgs", "builtin_interfaces", "cv_bridge"}
MAY_IMPORT = {
    "flmm_core": set(),
    "flmm_tabletop": {"flmm_core", "flmm_sim"},
    "flmm_sim": {"flmm_core"},
    "flmm_ros": {"flmm_core", "flmm_sim", *ROS},
    "flmm_bench": {"flmm_core", "flmm_sim", "flmm_ros", *ROS},
    "flmm_demo": {"flmm_core", "flmm_sim", "flmm_ros", *ROS},
    "flmm_fleet": {"flmm_core"},
    "flmm_cli": {"flmm_core", "flmm_tabletop", "flmm_sim", "flmm_ros", "flmm_bench", "flmm_fleet", "flmm_demo", *ROS},
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
    assert len(files) > 1
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
    pytest.importorskip("rclpy", reason="rclpy is not installed: `make setup`")
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed: `make setup`")
    from flmm_core.config import tunables
    from flmm_ros.parameters import NODE_TUNABLES

    given = yaml.safe_load((ROOT / "config" / "grounding.yaml").read_text())["/**"]["ros__parameters"]
    assert given == {entry.name: entry.default for entry in (*tunables(), *NODE_TUNABLES)}


@pytest.mark.parametrize("name", declare(argparse.ArgumentParser().add_subparsers()))
def test_every_command_has_help(name, capsys):
    with pytest.raises(SystemExit) as end:
        flmm([name, "--help"])
    assert end.value.code == 0
    assert len(capsys.readouterr().out) > 100


def test_wrong_arguments_end_with_status_2(capsys):
    for arguments in ([], ["no-such-command"], ["ask"], ["ask", "hello", "--timeout", "soon"]):
        with pytest.raises(SystemExit) as end:
            flmm(arguments)
        assert end.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_node_is_there_before_what_its_model_needs_is_imported():
    """Nodes and clients without a model import no PyTorch; the node with one imports transformers when it loads it."""
    pytest.importorskip("rclpy", reason="rclpy is not installed: `make setup`")
    pytest.importorskip("flmm_ros.msg", reason="the messages of flmm_ros are not built: `make setup`")
    light = ["flmm_ros.client", "flmm_ros.pick", "flmm_ros.voice", "flmm_ros.conversions"]
    if importlib.util.find_spec("mujoco"):
        light.append("flmm_ros.camera")
    loaded = "import sys\n"
    for module in (*light, "flmm_ros.grounding"):  # one process for all
        heavy = ("transformers", "torchvision", *(["torch"] if module in light else []))
        loaded += f"import {module}\nprint([name for name in {heavy} if name in sys.modules])\n"
    output = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-len(light) - 1 :] == ["[]"] * (len(light) + 1)


@pytest.mark.parametrize("command", [None, *declare(argparse.ArgumentParser().add_subparsers())])
def test_help_answers_at_once(command):
    """Without anything that takes long to import."""
    arguments = [*([command] if command else []), "--help"]
    loaded = f"import sys; from flmm_cli.main import main\ntry: main({arguments})\nexcept SystemExit: pass\n"
    heavy = ("torch", "rclpy", "mujoco", "transformers", "numpy", "cv2")
    loaded += f"print([name for name in {heavy} if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"
