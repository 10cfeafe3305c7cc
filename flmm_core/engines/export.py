"""Writes networks of grounding heads as ONNX models, by torch's exporter.

The numbers of phrases and text tokens and the U-Net's grid are dynamic; SAM's frame is fixed. In half precision, inputs,
outputs and operators that sum or normalise (norms, softmax, means) stay float32, as SAM's encoder overflows otherwise.
"""

from __future__ import annotations

import json
import logging
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flmm_core.common.output_files import replaced_folder, require_replaceable, written_file
from flmm_core.engines.names import OUTPUTS
from flmm_core.engines.networks import NetworkSizes, module_of, weights_hash
from flmm_core.errors import EngineError
from flmm_core.heads.interface import Heads
from flmm_core.weights.fingerprints import files_fingerprint

MANIFEST = "manifest.json"
FORMAT = "flmm-engines"
VERSION = 2
PRECISIONS = ("fp32", "fp16")

_FLOAT32_OPS = [
    "LayerNormalization", "GroupNormalization", "InstanceNormalization", "Softmax", "ReduceMean", "ReduceSum", "Pow", "Sqrt",
    "Reciprocal", "Resize", "Sin", "Cos",
]  # fmt: skip

_FILES = (MANIFEST, "*.onnx", "*.onnx.data")

_log = logging.getLogger(__name__)


def export_networks(heads: Heads, out: Path, *, what: Sequence[str] | None = None, precision: str = "fp32") -> dict[str, Any]:
    """Write networks and a manifest; the folder appears when everything is written.

    Args:
        heads: on the CPU or a GPU; they are exported on the CPU.
        out: folder to write; an earlier export in it is replaced.
        what: which networks; None for all of the heads.
        precision: of :data:`PRECISIONS`.

    Returns:
        The manifest.

    Raises:
        EngineError: ``onnx`` or ``onnxscript`` is not installed, or ``out`` holds other files.
        ValueError: unknown network or precision.
    """
    with exported(heads, out, what=what, precision=precision) as (_, manifest):
        return manifest


@contextmanager
def exported(
    heads: Heads, out: Path, *, what: Sequence[str] | None = None, precision: str = "fp32"
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """As :func:`export_networks`, with a look at the networks, and at their manifest, before they appear in ``out``.

    They do not appear, and an earlier export stays, if the block raises.
    """
    _require_exporter()
    what = heads.networks if what is None else what
    _check_request(out, what, heads.networks, precision)
    sizes = NetworkSizes.of(heads)
    manifest: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "precision": precision,
        "sizes": asdict(sizes),
        "versions": {name: version(name) for name in ("torch", "onnx", "onnxscript")},
        "networks": {},
    }
    with replaced_folder(out, _FILES, "export") as folder:
        for number, network in enumerate(what, start=1):
            began = time.monotonic()
            _log.info("exporting %s (%d of %d) ...", network, number, len(what))
            module = module_of(heads, network)
            opset = _export(module, network, sizes, folder / f"{network}.onnx", precision)
            manifest["networks"][network] = {
                "inputs": sizes.inputs(network),
                "outputs": OUTPUTS[network],
                "weights": weights_hash(module),
                "opset": opset,
                "file": _file_fingerprint(folder, network),
            }
            _log.info("exported %s in %.1f s", network, time.monotonic() - began)
        write_manifest(folder, manifest)
        yield folder, manifest


def _check_request(out: Path, what: Sequence[str], known: Sequence[str], precision: str) -> None:
    if unknown := sorted(set(what) - set(known)):
        raise ValueError(f"what: expected some of {', '.join(known)}, got {', '.join(unknown)}")
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    try:
        require_replaceable(out, _FILES, "export")
    except ValueError as error:
        raise EngineError(f"engines {error}") from error


def read_manifest(folder: Path) -> dict[str, Any]:
    """Manifest of exported networks.

    Raises:
        EngineError: there is none, or it is damaged.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise EngineError(
            f"engines {folder}: expected exported networks with {MANIFEST}, got none; write them by `flmm export`"
        )
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if (got := (manifest["format"], manifest["version"])) != (FORMAT, VERSION):
            raise EngineError(f"engines {path}: expected format {FORMAT} {VERSION}, got {got[0]} {got[1]}; run `flmm export`")
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, EngineError):
            raise
        raise EngineError(f"engines {path}: expected a manifest, got a damaged file ({error})") from error
    return manifest


def check_belongs(folder: Path, heads: Heads, *, precision: str, networks: Sequence[str]) -> None:
    """Refuse exported networks that are missing or belong to other heads, another SAM, other prompts or another precision.

    Raises:
        EngineError: names the network, and both hashes.
    """
    manifest = read_manifest(folder)
    if manifest["precision"] != precision:
        raise EngineError(f"engines {folder}: expected precision {precision}, got {manifest['precision']}")
    for network in networks:
        entry, file = manifest["networks"].get(network), folder / f"{network}.onnx"
        if entry is None or not file.is_file():
            raise EngineError(f"engines {folder}: expected {network}.onnx, got none; write it by `flmm export`")
        if entry["file"] != _file_fingerprint(folder, network):
            raise EngineError(f"engines {file}: expected the file as it was exported, got a changed or damaged one")
        expected = weights_hash(module_of(heads, network))
        if entry["weights"] != expected:
            raise EngineError(
                f"engines {file}: expected the {network} of the heads and SAM in use (weights {expected[:12]}), got another"
                f" one's (weights {entry['weights'][:12]}); write it by `flmm export`"
            )
    for name, size in asdict(NetworkSizes.of(heads)).items() if "sam_decoder" in networks else ():
        if (got := manifest["sizes"][name]) != (wanted := list(size) if isinstance(size, tuple) else size):
            raise EngineError(f"engines {folder}: expected {name} {wanted}, got {got}; write it by `flmm export`")


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest beside the networks, atomically."""
    with written_file(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _file_fingerprint(folder: Path, network: str) -> str:
    return files_fingerprint(sorted(folder.glob(f"{network}.onnx*")))


def _require_exporter() -> None:
    for package in ("onnx", "onnxscript"):
        try:
            version(package)
        except Exception as error:
            raise EngineError(f"export: expected the package {package}, got none; pip install 'flmm_ros[export]'") from error


def _export(module: nn.Module, network: str, sizes: NetworkSizes, path: Path, precision: str) -> int:
    """Write one network; returns its opset."""
    import onnx

    model = _onnx_model(module, network, sizes)
    if precision == "fp16":
        model = _half(model)
    onnx.save_model(model, str(path), save_as_external_data=True, location=f"{path.name}.data")
    return int(model.opset_import[0].version)


def _onnx_model(module: nn.Module, network: str, sizes: NetworkSizes) -> Any:
    """The network as an ONNX model in single precision."""
    parameter = next(module.parameters())
    device, inputs = parameter.device, sizes.examples(network, phrases=2, grid=(64, 48), tokens=3)
    phrases, height, width, tokens = (torch.export.Dim(name, min=1, max=4096) for name in ("n", "h8", "w8", "t"))
    dynamic: dict[str, Any] = {
        "unet": {"maps": {0: phrases, 2: 8 * height, 3: 8 * width}},
        "sam_encoder": {"pixels": None},
        "sam_decoder": {
            "embedding": None,
            "prompts": tuple({0: phrases, 1: tokens} if name == "texts" else {0: phrases} for name in sizes.prompts),
        },
    }
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about names of axes and about its own deprecations
        program = torch.onnx.export(
            module.cpu(),
            inputs,
            dynamo=True,
            dynamic_shapes=dynamic[network],
            input_names=list(sizes.inputs(network)),
            output_names=list(OUTPUTS[network]),
            verbose=False,
        )
    module.to(device)
    assert program is not None
    return program.model_proto


def _half(model: Any) -> Any:
    """The same graph in half precision, with float32 inputs and outputs."""
    try:
        from onnxruntime.transformers.float16 import convert_float_to_float16
    except ImportError as error:
        raise EngineError("export in fp16: expected the package onnxruntime, got none; pip install 'flmm_ros[onnx]'") from error
    return convert_float_to_float16(model, keep_io_types=True, op_block_list=_FLOAT32_OPS)
