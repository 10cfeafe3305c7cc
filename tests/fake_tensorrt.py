"""TensorRT's Python API without a GPU: names and signatures are those of version 11, ONNX Runtime computes.

A plan is the ONNX model's path and the profile. What TensorRT would refuse is refused here too: shapes outside the profile,
tensors that do not exist.
"""

import ctypes
import json
from enum import IntEnum
from pathlib import Path
from types import ModuleType

import numpy as np
import onnxruntime


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)


class IProgressMonitor:
    pass


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 1


class MemoryPoolType(IntEnum):
    WORKSPACE = 0


class BuilderFlag(IntEnum):
    TF32 = 7


class _Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, input, min, opt, max):
        assert len(min) == len(opt) == len(max) and all(a <= b <= c for a, b, c in zip(min, opt, max, strict=True))
        self.shapes[input] = [min, opt, max]


class _Config:
    def __init__(self):
        self.profiles, self.cleared, self.workspace, self.progress_monitor = [], [], None, None

    def set_memory_pool_limit(self, pool, pool_size):
        self.workspace = pool_size

    def clear_flag(self, flag):
        self.cleared.append(flag)

    def add_optimization_profile(self, profile):
        self.profiles.append(profile)


class _Network:
    def __init__(self, flags):
        assert flags == 1 << NetworkDefinitionCreationFlag.STRONGLY_TYPED
        self.path = None


class OnnxParser:
    def __init__(self, network, logger):
        self.network = network
        self.num_errors = 0

    def parse_from_file(self, model):
        self.network.path = model
        return True

    def get_error(self, index):
        raise AssertionError("no errors")


BUILT, CONFIGS = [], []
"""Names of the networks that were built, and how; a test clears them."""


class Builder:
    def __init__(self, logger):
        assert isinstance(logger, ILogger)
        self.logger = logger

    def create_network(self, flags=0):
        return _Network(flags)

    def create_builder_config(self):
        return _Config()

    def create_optimization_profile(self):
        return _Profile()

    def build_serialized_network(self, network, config):
        BUILT.append(Path(network.path).stem)
        CONFIGS.append(config)
        config.progress_monitor.phase_start("Building", None, 4)
        config.progress_monitor.phase_start("Timing", "Building", 2)
        for step in range(4):
            assert config.progress_monitor.step_complete("Timing", step)
            assert config.progress_monitor.step_complete("Building", step)
        config.progress_monitor.phase_finish("Building")
        self.logger.log(ILogger.WARNING, "a warning")
        shapes = config.profiles[0].shapes if config.profiles else {}
        return json.dumps({"model": network.path, "shapes": shapes}).encode()


class Runtime:
    def __init__(self, logger):
        pass

    def deserialize_cuda_engine(self, serialized_engine):
        try:
            return _Engine(json.loads(serialized_engine))
        except ValueError:
            return None


class _Engine:
    def __init__(self, plan):
        self.plan = plan

    def create_execution_context(self):
        return _Context(self.plan)


class _Context:
    def __init__(self, plan):
        self.profile = plan["shapes"]
        self.session = onnxruntime.InferenceSession(plan["model"])
        self.inputs = {one.name: one for one in self.session.get_inputs()}
        self.outputs = [one.name for one in self.session.get_outputs()]
        self.shapes, self.addresses = {}, {}

    def set_input_shape(self, name, shape):
        fixed = self.inputs[name].shape
        if name in self.profile:
            least, _, most = self.profile[name]
            assert all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)), f"{name} {shape} outside the profile"
        else:
            assert list(shape) == fixed, f"{name} {shape}, expected {fixed}"
        self.shapes[name] = shape
        return True

    def set_tensor_address(self, name, memory):
        assert name in self.inputs or name in self.outputs
        self.addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle):
        given = {name: self._view(name, self.shapes[name]) for name in self.inputs}
        for name, value in zip(self.outputs, self.session.run(None, given), strict=True):
            self._view(name, value.shape)[...] = value
        self.shapes, self.addresses = {}, {}
        return True

    def _view(self, name, shape):
        count = int(np.prod(shape))
        memory = (ctypes.c_float * count).from_address(self.addresses[name])
        return np.frombuffer(memory, dtype=np.float32).reshape(shape)


def module() -> ModuleType:
    """The package ``tensorrt``."""
    made = ModuleType("tensorrt")
    for name, value in globals().items():
        if not name.startswith("_") and name[0].isupper():
            setattr(made, name, value)
    made.__version__ = "11.0"
    return made
