"""Runs a launch file whose nodes record their arguments and end; with the real ``launch`` where there is one.

As a program: ``launch_runner.py FILE NAME:=VALUE...``. With launch, launch_ros, osrf_pycommon and composition_interfaces on
PYTHONPATH the tests run on the real packages.
"""

import importlib.util
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
REAL = importlib.util.find_spec("launch_ros") is not None

RECORDER = """#!{python}
import json, os, sys, time
from pathlib import Path
files = {{word: Path(word).read_text() for flag, word in zip(sys.argv, sys.argv[1:]) if flag == "--params-file"}}
Path({records!r}, f"{{Path(sys.argv[0]).name}}.json").write_text(json.dumps([sys.argv[1:], files]))
time.sleep({seconds})  # the end of one process may end the others
"""


@dataclass
class Started:
    """A node that was started."""

    words: list
    """Its arguments."""
    files: dict
    """Its parameter files, as text."""

    def given(self, *flags):
        return [word for flag, word in zip(self.words, self.words[1:], strict=False) if flag in flags]

    @property
    def remapped(self):
        """Names after remapping, ``__node`` and ``__ns`` included; the first rule for a name counts."""
        return dict(word.split(":=", 1) for word in reversed(self.given("-r")))

    @property
    def name(self):
        space = self.remapped.get("__ns", "/").rstrip("/")
        return f"{space}/{self.remapped.get('__node', '?')}"

    @property
    def parameters(self):
        """Those in effect, as rclpy reads them: sections of one name are joined; of two names the later one counts."""
        sections = {}
        for flag, word in zip(self.words, self.words[1:], strict=False):
            if flag == "-p":
                name, value = word.split(":=", 1)
                sections.setdefault("/**", {})[name] = yaml.safe_load(value)
            elif flag == "--params-file":
                for node, values in yaml.safe_load(self.files[word]).items():
                    sections.setdefault(node, {}).update(values["ros__parameters"])
        ours = [values for node, values in sections.items() if node == "/**" or f"/{node.strip('/')}" == self.name]
        return {name: value for values in ours for name, value in values.items()}


class Launcher:
    """Runs launch files.

    Args:
        folder: for everything that is written.
        packages: installed packages of ROS, with their executables.
    """

    def __init__(self, folder, packages):
        self.folder = folder
        self.records, self.temporary, prefix = folder / "records", folder / "temporary", folder / "prefix"
        for path in (self.records, self.temporary, prefix / "share/ament_index/resource_index/packages"):
            path.mkdir(parents=True)
        for package, executables in packages.items():
            (prefix / "share/ament_index/resource_index/packages" / package).touch()
            (prefix / "lib" / package).mkdir(parents=True)
            for name in executables:
                path = prefix / "lib" / package / name
                path.write_text(RECORDER.format(python=sys.executable, records=str(self.records), seconds=0.7 if REAL else 0))
                path.chmod(0o755)
        self.share = prefix / "share" / "flmm_ros"
        self.share.symlink_to(ROOT)
        self.environment = os.environ | {
            "AMENT_PREFIX_PATH": str(prefix),
            "TMPDIR": str(self.temporary),
            "ROS_LOG_DIR": str(folder / "log"),
            "ROS_DISTRO": "kilted",
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        }

    def run(self, file, *arguments):
        """Run a launch file of this package by its name, or one of a parent given as text.

        Returns:
            The nodes that it started, by executable, and its output.
        """
        path = ROOT / "launch" / file
        if not file.endswith(".launch.py"):
            path = self.folder / "parent.launch.py"
            path.write_text(PARENT + file)
        for record in self.records.iterdir():
            record.unlink()
        command = [sys.executable, __file__, str(path), *arguments]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=60)
        found = {record.stem: Started(*json.loads(record.read_text())) for record in self.records.iterdir()}
        return found, done.stdout + done.stderr


PARENT = """
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, GroupAction, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import PushRosNamespace, SetParameter
from ament_index_python.packages import get_package_share_directory

def include(name="grounding", **arguments):
    file = get_package_share_directory("flmm_ros") + f"/launch/{name}.launch.py"
    return IncludeLaunchDescription(PythonLaunchDescriptionSource(file), launch_arguments=arguments.items())
"""
"""The beginning of a launch file that includes those of this package."""


def main(path, *arguments):
    if not REAL:
        import fake_launch

        fake_launch.install()
    from launch import LaunchDescription, LaunchService
    from launch.actions import IncludeLaunchDescription
    from launch.launch_description_sources import PythonLaunchDescriptionSource

    given = [tuple(argument.split(":=", 1)) for argument in arguments]
    service = LaunchService(argv=list(arguments))
    file = IncludeLaunchDescription(PythonLaunchDescriptionSource(path), launch_arguments=given)
    service.include_launch_description(LaunchDescription([file]))
    return service.run()


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
