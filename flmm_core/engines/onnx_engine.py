"""Runs exported networks with ONNX Runtime, on its CPU or CUDA provider."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flmm_core.common.plain_text import one_line
from flmm_core.engines.export import check_belongs
from flmm_core.engines.names import OUTPUTS
from flmm_core.engines.networks import NetworkSizes
from flmm_core.errors import EngineError
from flmm_core.heads.interface import Heads


class OnnxEngine:
    """Networks in ONNX Runtime.

    Args:
        folder: of :func:`~flmm_core.engines.export.export_networks`.
        heads: to which the networks must belong.
        device: to run on; its provider must be available.
        precision: of the exported networks.
        networks: which to load; None for all of the heads.

    Raises:
        EngineError: the package or the provider is missing, or a file is damaged or belongs to other heads.
    """

    def __init__(
        self,
        folder: Path,
        heads: Heads,
        *,
        device: torch.device,
        precision: str = "fp32",
        networks: Sequence[str] | None = None,
    ) -> None:
        networks = heads.networks if networks is None else networks
        check_belongs(folder, heads, precision=precision, networks=networks)
        self._sizes = NetworkSizes.of(heads)
        self._device = device
        self._provider = _provider(device)
        self._sessions = {network: self._session(folder / f"{network}.onnx") for network in networks}
        self.description = f"onnx, {self._provider}, {precision}"

    def run(self, network: str, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Outputs of one network; see :class:`~flmm_core.engines.networks.Engine`."""
        kept = [value.detach().float().contiguous() for value in inputs]
        outputs = tuple(torch.empty(shape, device=self._device) for shape in self._sizes.outputs(network, inputs))
        session = self._sessions[network]
        binding = session.io_binding()
        for bind, names, tensors in (
            (binding.bind_input, self._sizes.inputs(network), kept),
            (binding.bind_output, OUTPUTS[network], outputs),
        ):
            for name, value in zip(names, tensors, strict=True):
                bind(name, self._device.type, self._device.index or 0, "float32", tuple(value.shape), value.data_ptr())
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()  # ONNX Runtime uses another stream
        session.run_with_iobinding(binding)
        return outputs

    def _session(self, path: Path) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if self._device.type == "cpu":
            options.intra_op_num_threads = torch.get_num_threads()
            # Spinning threads would take cores from PyTorch, which runs the next stage.
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        device = [{"device_id": self._device.index or 0}] if self._device.type == "cuda" else [{}]
        try:
            session = onnxruntime.InferenceSession(
                str(path), sess_options=options, providers=[self._provider], provider_options=device
            )
        except Exception as error:  # ONNX Runtime raises many types
            raise EngineError(f"engines {path}: expected an ONNX model that loads, got {one_line(error):.200}") from error
        if (used := session.get_providers()[0]) != self._provider:
            remedy = _REMEDY[self._device.type]
            raise EngineError(f"engines {path}: expected to run on {self._provider}, got {used}; {remedy}")
        return session


_REMEDY = {
    "cpu": "pip install 'flmm_ros[onnx]'",
    "cuda": "pip install 'flmm_ros[gpu]', with the CUDA that it is built for",
}


def _provider(device: torch.device) -> str:
    """Name of the provider for a device.

    Raises:
        EngineError: ONNX Runtime is not installed, or without that provider.
    """
    wanted = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
    try:
        import onnxruntime
    except ImportError as error:
        raise EngineError(f"heads_backend onnx: expected the package onnxruntime, got none; {_REMEDY[device.type]}") from error
    available = onnxruntime.get_available_providers()
    if wanted not in available:
        raise EngineError(
            f"heads_backend onnx: expected ONNX Runtime with {wanted}, got one with {', '.join(available)};"
            f" {_REMEDY[device.type]}"
        )
    return wanted
