"""Builds and runs exported networks with TensorRT's own Python API, on one GPU.

TensorRT is strongly typed: the number format is that of the exported ONNX models. A built network (a plan) runs only with
the GPU model and TensorRT version that it was built for, so plans are cached for each combination.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flmm_core.common.output_files import written_file
from flmm_core.engines.cache import engine_cache
from flmm_core.engines.export import check_belongs, read_manifest
from flmm_core.engines.names import OUTPUTS
from flmm_core.engines.networks import NetworkSizes, ShapeLimits
from flmm_core.errors import EngineError
from flmm_core.heads.interface import Heads
from flmm_core.weights.fingerprints import settings_fingerprint

_WORKSPACE = 4 * 2**30
"""Workspace of a network in bytes, beside its weights and tensors."""

_SAY_EVERY = 5.0
"""Seconds between two log lines during a build."""

_log = logging.getLogger(__name__)


class TensorrtEngine:
    """Networks in TensorRT; those not yet built for this GPU are built at construction, which takes minutes.

    Args:
        folder: of :func:`~flmm_core.engines.export.export_networks`.
        heads: to which the networks must belong.
        device: a GPU.
        precision: of the exported networks.
        networks: which to load; None for all of the heads.
        limits: input shapes of the plans.

    Raises:
        EngineError: TensorRT or a GPU is missing, or a network cannot be built or belongs to other heads.
    """

    def __init__(
        self,
        folder: Path,
        heads: Heads,
        *,
        device: torch.device,
        precision: str = "fp32",
        networks: Sequence[str] | None = None,
        limits: ShapeLimits | None = None,
    ) -> None:
        self._trt = _tensorrt()
        self._gpu = _gpu(device)
        networks = heads.networks if networks is None else networks
        check_belongs(folder, heads, precision=precision, networks=networks)
        self._sizes = NetworkSizes.of(heads)
        self._device = device
        self._limits = limits or ShapeLimits()
        self._log = _logger(self._trt)
        self._runtime = self._trt.Runtime(self._log)
        self._contexts = {network: self._load(folder, network, precision) for network in networks}
        self.description = f"tensorrt {self._trt.__version__}, {self._gpu}, {precision}"

    def run(self, network: str, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Outputs of one network; see :class:`~flmm_core.engines.networks.Engine`.

        Raises:
            EngineError: a shape lies outside the limits, or the GPU failed.
        """
        names, most = self._sizes.inputs(network), self._limits.phrases
        self._limits.check(dict(zip(names, inputs, strict=True)))
        if network != "sam_encoder" and len(inputs[-1]) > most:  # in parts, as phrases are independent here
            named = list(zip(names, inputs, strict=True))
            starts = range(0, len(inputs[-1]), most)
            cuts = [tuple(value if name == "embedding" else value[i : i + most] for name, value in named) for i in starts]
            return tuple(torch.cat(values) for values in zip(*(self.run(network, cut) for cut in cuts), strict=True))
        context = self._contexts[network]
        kept = [value.detach().float().contiguous() for value in inputs]
        outputs = tuple(torch.empty(shape, device=self._device) for shape in self._sizes.outputs(network, inputs))
        for name, value in zip(names, kept, strict=True):
            context.set_input_shape(name, tuple(value.shape))
            context.set_tensor_address(name, value.data_ptr())
        for name, value in zip(OUTPUTS[network], outputs, strict=True):
            context.set_tensor_address(name, value.data_ptr())
        # PyTorch frees the inputs' memory in the order of the stream, so it is valid until they have been read.
        if not context.execute_async_v3(_stream(self._device)):
            raise EngineError(f"{self.description}: expected {network} to run, got a failure; the log says why")
        return outputs

    def _load(self, folder: Path, network: str, precision: str) -> Any:
        """An execution context; a missing or damaged plan is built."""
        path = self._plan_path(folder, network)
        for attempt in ("kept", "new"):
            plan = _read_plan(path) if attempt == "kept" else None
            if plan is None:
                plan = self._build(folder / f"{network}.onnx", network, precision)
                _write_plan(path, plan)
            engine = self._runtime.deserialize_cuda_engine(plan)
            if engine is not None:
                return engine.create_execution_context()
            _log.warning("%s: TensorRT does not take the kept plan; it is built again", path)
        raise EngineError(f"{path}: expected a plan that TensorRT {self._trt.__version__} loads, got none")

    def _plan_path(self, folder: Path, network: str) -> Path:
        """Path of a plan, named after everything that it depends on."""
        key = {
            "network": network,
            "model": read_manifest(folder)["networks"][network]["file"],
            "tensorrt": self._trt.__version__,
            "gpu": self._gpu,
            "profile": self._limits.profile(network, self._sizes),
        }
        return engine_cache() / "plans" / f"{network}-{settings_fingerprint(key)[:24]}.plan"

    def _build(self, path: Path, network: str, precision: str) -> bytes:
        trt = self._trt
        builder = trt.Builder(self._log)
        definition = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(definition, self._log)
        if not parser.parse_from_file(str(path)):
            reasons = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
            raise EngineError(f"{path}: expected an ONNX model that TensorRT {trt.__version__} takes, got {reasons:.300}")
        settings = builder.create_builder_config()
        settings.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, _WORKSPACE)
        if precision == "fp32":
            settings.clear_flag(trt.BuilderFlag.TF32)
        if shapes := self._limits.profile(network, self._sizes):
            profile = builder.create_optimization_profile()
            for name, (least, usual, most) in shapes.items():
                profile.set_shape(name, least, usual, most)
            settings.add_optimization_profile(profile)
        settings.progress_monitor = _monitor(trt, network)
        _log.info("building %s for %s; this is done once ...", network, self._gpu)
        began = time.monotonic()
        plan = builder.build_serialized_network(definition, settings)
        if plan is None:
            raise EngineError(
                f"{path}: expected a network that TensorRT {trt.__version__} builds, got a failure; the log says why"
            )
        _log.info("built %s in %.0f s", network, time.monotonic() - began)
        return bytes(plan)


def _tensorrt() -> Any:
    """The package.

    Raises:
        EngineError: it is not installed, or its libraries do not load.
    """
    try:
        import tensorrt
    except (ImportError, OSError) as error:
        raise EngineError(
            f"heads_backend tensorrt: expected the package tensorrt, got {error}; pip install 'flmm_ros[gpu]'"
        ) from error
    return tensorrt


def _gpu(device: torch.device) -> str:
    """Name and compute capability.

    Raises:
        EngineError: the device is no GPU.
    """
    if device.type != "cuda":
        raise EngineError(f"heads_backend tensorrt: expected device cuda, got {device}")
    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} (sm_{major}{minor})"


def _stream(device: torch.device) -> int:
    """Handle of the CUDA stream that PyTorch works in now."""
    return int(torch.cuda.current_stream(device).cuda_stream)


def _logger(trt: Any) -> Any:
    """A logger of TensorRT that forwards messages to Python's logging."""
    levels = {trt.ILogger.INTERNAL_ERROR: logging.ERROR, trt.ILogger.ERROR: logging.ERROR, trt.ILogger.WARNING: logging.WARNING}

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            _log.log(levels.get(severity, logging.DEBUG), "TensorRT: %s", message)

    return Logger()


def _monitor(trt: Any, network: str) -> Any:
    """A progress monitor of TensorRT that logs the progress of the outermost phase."""

    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._phase = ""
            self._steps = 1
            self._began = self._said = time.monotonic()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if not parent_phase:
                self._phase, self._steps = phase_name, max(1, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            now = time.monotonic()
            if phase_name == self._phase and now - self._said >= _SAY_EVERY:
                self._said, done = now, (step + 1) / self._steps
                left = (now - self._began) * (1 - done) / done
                _log.info("building %s: %.0f %%, about %.0f s left", network, 100 * done, left)
            return True

        def phase_finish(self, phase_name: str) -> None:
            pass

    return Monitor()


_DIGEST = hashlib.sha256().digest_size


def _read_plan(path: Path) -> bytes | None:
    """A cached plan; None if there is none, or a damaged one."""
    if not path.is_file():
        return None
    content = path.read_bytes()
    digest, plan = content[:_DIGEST], content[_DIGEST:]
    if hashlib.sha256(plan).digest() == digest:
        return plan
    _log.warning("%s: expected a plan as it was written, got a damaged one; it is built again", path)
    return None


def _write_plan(path: Path, plan: bytes) -> None:
    """Keep a plan, preceded by its digest, for the next start; a cache that cannot be written costs only that."""
    try:
        with written_file(path) as temporary:
            temporary.write_bytes(hashlib.sha256(plan).digest() + plan)
    except OSError as error:
        _log.warning("%s: the plan cannot be kept and is built again at the next start (%s)", path, error)
