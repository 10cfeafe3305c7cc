"""Stands in for ``launch`` and ``launch_ros``, which the wheels of ROS 2 lack: what the launch files of this package use.

Checked against the real packages by running the same tests with them: see launch_runner.py.
"""

import os
import runpy
import subprocess
import sys
import tempfile
import types
from dataclasses import dataclass, field

import yaml
from ament_index_python.packages import get_package_prefix


@dataclass
class LaunchContext:
    launch_configurations: dict = field(default_factory=dict)
    handlers: list = field(default_factory=list)
    """Of the ends of processes."""
    ended: list = field(default_factory=list)
    """Nodes that have run."""

    def perform(self, given):
        """Text of a text, a substitution, or a list of both."""
        if isinstance(given, list | tuple):
            return "".join(self.perform(part) for part in given)
        return given.perform(self) if hasattr(given, "perform") else str(given)

    def visit(self, entities):
        for entity in entities or ():
            self.visit(entity.execute(self))


class Action:
    """For annotations."""


class LaunchDescription(list):
    def execute(self, context):
        context.visit(self)


class LaunchService:
    def __init__(self, argv=()):
        self.context = LaunchContext()

    def include_launch_description(self, description):
        self.entities = description

    def run(self):
        try:
            self.context.visit([self.entities])
            for node in self.context.ended:
                self.context.visit(
                    [action for handler in self.context.handlers if handler.of(node) for action in handler.on_exit]
                )
        except Exception as error:
            print(f"[ERROR] [launch]: Caught exception in launch (see debug for traceback): {error}", file=sys.stderr)
            return 1
        return 0


class LaunchConfiguration:
    def __init__(self, name, default=None):
        self.name, self.default = name, default

    def perform(self, context):
        found = context.launch_configurations.get(self.name, self.default)
        if found is None:
            raise RuntimeError(f"launch configuration '{self.name}' does not exist")
        return str(found)


class DeclareLaunchArgument:
    def __init__(self, name, *, default_value=None, description="", choices=None):
        self.name, self.default, self.choices = name, default_value, choices

    def execute(self, context):
        given = context.launch_configurations.setdefault(self.name, self.default)
        if given is None:
            raise RuntimeError(f"Required launch argument '{self.name}' was not provided.")
        if self.choices and given not in self.choices:
            raise RuntimeError(
                f"Argument {self.name!r} provided value {given!r} is not valid. Valid options are: {self.choices}"
            )


class OpaqueFunction:
    def __init__(self, *, function):
        self.function = function

    def execute(self, context):
        return self.function(context)


class GroupAction:
    def __init__(self, actions):
        self.actions = actions

    def execute(self, context):
        before = {name: list(v) if isinstance(v, list) else v for name, v in context.launch_configurations.items()}
        context.visit(self.actions)
        context.launch_configurations = before


class PythonLaunchDescriptionSource:
    def __init__(self, path):
        self.path = path


class IncludeLaunchDescription:
    def __init__(self, source, *, launch_arguments=()):
        self.source, self.arguments = source, launch_arguments

    def execute(self, context):
        for name, given in self.arguments:
            context.launch_configurations[name] = context.perform(given)
        return [runpy.run_path(context.perform(self.source.path))["generate_launch_description"]()]


class OnProcessExit:
    def __init__(self, *, on_exit, target_action=lambda action: True):
        self.on_exit, self.of = on_exit, target_action


class RegisterEventHandler:
    def __init__(self, handler):
        self.handler = handler

    def execute(self, context):
        context.handlers.append(self.handler)


class Shutdown:
    def __init__(self, *, reason):
        self.reason = reason

    def execute(self, context):
        print(f"shutdown: {self.reason}")


@dataclass
class ParameterValue:
    value: object
    value_type: type

    def perform(self, context):
        return self.value_type(yaml.safe_load(context.perform(self.value)))


class SetParameter:
    def __init__(self, name, value):
        self.name, self.value = name, value

    def execute(self, context):
        context.launch_configurations.setdefault("global_params", []).append((self.name, _plain(context, self.value)))


class PushRosNamespace:
    def __init__(self, namespace):
        self.namespace = namespace

    def execute(self, context):
        context.launch_configurations["ros_namespace"] = _below(
            context.launch_configurations.get("ros_namespace"), context.perform(self.namespace)
        )


class Node:
    """Runs its executable to the end."""

    def __init__(
        self,
        *,
        package,
        executable,
        name=None,
        namespace=None,
        parameters=(),
        remappings=(),
        arguments=(),
        ros_arguments=(),
        **_,
    ):
        self.executable, self.node_executable = (package, executable), executable
        self.name, self.namespace = name, namespace
        self.parameters, self.remappings = parameters, remappings
        self.arguments, self.ros_arguments = arguments, ros_arguments

    def execute(self, context):
        package, executable = self.executable
        command = [f"{get_package_prefix(package)}/lib/{package}/{executable}", *self.arguments]
        command += ["--ros-args", *self.ros_arguments] if self.ros_arguments else []
        command += ["--ros-args"]
        command += ["-r", f"__node:={self.name}"] if self.name else []
        pushed = context.launch_configurations.get("ros_namespace")
        space = pushed if self.namespace is None else _below(pushed, self.namespace)
        command += ["-r", f"__ns:={space}"] if space is not None else []
        for name, value in context.launch_configurations.get("global_params", ()):
            command += ["-p", f"{name}:={value}"]
        full = f"{space.rstrip('/')}/{self.name}" if self.name and space is not None else "/**"
        for given in self.parameters:
            command += ["--params-file", _file(context, full, given) if isinstance(given, dict) else str(given)]
        for before, after in self.remappings:
            command += ["-r", f"{context.perform(before)}:={context.perform(after)}"]
        subprocess.run([context.perform(word) for word in command], check=True)
        context.ended.append(self)


def _below(pushed, given):
    if given.startswith("/") or not pushed:
        return "/" + given.strip("/")
    return f"{pushed.rstrip('/')}/{given}".rstrip("/") or "/"


def _plain(context, value):
    return value.perform(context) if hasattr(value, "perform") else value


def _file(context, full, given):
    values = {name: _plain(context, value) for name, value in given.items()}
    with tempfile.NamedTemporaryFile("w", prefix="launch_params_", delete=False) as file:
        yaml.safe_dump({full: {"ros__parameters": values}}, file)
    return os.path.abspath(file.name)


MODULES = {
    "launch": (Action, LaunchContext, LaunchDescription, LaunchService),
    "launch.actions": (
        DeclareLaunchArgument,
        GroupAction,
        IncludeLaunchDescription,
        OpaqueFunction,
        RegisterEventHandler,
        Shutdown,
    ),
    "launch.event_handlers": (OnProcessExit,),
    "launch.launch_description_sources": (PythonLaunchDescriptionSource,),
    "launch.substitutions": (LaunchConfiguration,),
    "launch_ros": (),
    "launch_ros.actions": (Node, PushRosNamespace, SetParameter),
    "launch_ros.parameter_descriptions": (ParameterValue,),
}


def install():
    """Make the modules importable."""
    for name, kinds in MODULES.items():
        module = types.ModuleType(name)
        module.__path__ = []
        vars(module).update({kind.__name__: kind for kind in kinds})
        sys.modules[name] = module
