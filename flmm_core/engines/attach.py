"""Attaches an engine to heads: finds or exports its files, loads them, and compares the outputs with PyTorch before use."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from flmm_core.common.plain_text import one_line
from flmm_core.engines import parity
from flmm_core.engines.cache import cache_lock, engine_cache
from flmm_core.engines.export import MANIFEST, check_belongs, export_networks, exported, write_manifest
from flmm_core.engines.networks import Engine, NetworkSizes, module_of, weights_hash
from flmm_core.engines.onnx_engine import OnnxEngine
from flmm_core.engines.tensorrt_engine import TensorrtEngine
from flmm_core.errors import EngineError
from flmm_core.heads.grounding_heads import GroundingHeads
from flmm_core.heads.interface import Heads
from flmm_core.weights.fingerprints import settings_fingerprint

_log = logging.getLogger(__name__)


_BACKENDS: dict[str, Callable[..., Engine]] = {"onnx": OnnxEngine, "tensorrt": TensorrtEngine}


def attach_backend(heads: Heads, backend: str, *, device: torch.device, precision: str = "fp32", folder: str = "") -> Engine:
    """Let ONNX Runtime or TensorRT run the heads' networks.

    Args:
        heads: moved to ``device`` and modified.
        backend: onnx or tensorrt.
        device: to run on.
        precision: fp32 or fp16.
        folder: exported networks; empty for the user's cache, to which they are exported if they are missing or damaged.

    Returns:
        The attached engine.

    Raises:
        EngineError: it cannot be loaded, belongs to other heads, or its outputs differ from PyTorch's.
    """
    heads = heads.to(device)
    build = partial(_BACKENDS[backend], heads=heads, device=device, precision=precision)
    engine = build(Path(folder).expanduser()) if folder else _from_cache(heads, build, precision)
    found = parity.measure(engine, heads, device=device)
    parity.require(found, precision=precision, what=f"heads_backend {engine.description}")
    attach(heads, engine)
    worst = max(one.difference for one in found)
    _log.info("heads run on %s (largest difference to PyTorch: %.1e of the largest number)", engine.description, worst)
    return engine


def export_checked(
    heads: Heads, out: Path, *, what: Sequence[str] | None = None, precision: str = "fp32"
) -> tuple[parity.Parity, ...]:
    """Export networks, compare them with PyTorch on the CPU, and write the differences into the manifest.

    The folder appears when all of this has succeeded; an earlier export stays until then.

    Args:
        heads: on the CPU.
        out: folder to write.
        what: which networks; None for all of the heads.
        precision: fp32 or fp16.

    Raises:
        EngineError: they cannot be exported, or their outputs differ from PyTorch's.
    """
    device = torch.device("cpu")
    with exported(heads, out, what=what, precision=precision) as (folder, manifest):
        engine = OnnxEngine(folder, heads, device=device, precision=precision, networks=what)
        found = parity.measure(engine, heads, device=device, networks=what)
        parity.require(found, precision=precision, what=f"export {out}")
        for one in found:
            figures = {"difference": one.difference, "iou": one.iou} if one.is_logits else {"difference": one.difference}
            manifest["networks"][one.network].setdefault("measured", {})[one.output] = figures
        write_manifest(folder, manifest)
    return found


def built_checked(
    heads: Heads, folder: Path, *, what: Sequence[str] | None = None, precision: str = "fp32"
) -> tuple[Engine, tuple[parity.Parity, ...]]:
    """Build exported networks with TensorRT for the GPU that the heads are on, and compare them with PyTorch.

    Args:
        heads: on a GPU.
        folder: exported networks.
        what: which networks; None for all of the heads.
        precision: of the exported networks.

    Raises:
        EngineError: they cannot be built, or their outputs differ from PyTorch's.
    """
    device = next(heads.parameters()).device
    engine = TensorrtEngine(folder, heads, device=device, precision=precision, networks=what)
    found = parity.measure(engine, heads, device=device, networks=what)
    parity.require(found, precision=precision, what=f"engines {folder}")
    return engine, found


def attach(heads: Heads, engine: Engine) -> None:
    """Let an engine run the networks of heads; the PyTorch weights are kept unchanged."""

    def one(network: str) -> Callable[..., Tensor]:
        return lambda *inputs: engine.run(network, inputs)[0]

    if isinstance(heads, GroundingHeads):
        heads.mask_head.engine = one("unet")
    heads.sam.encoder_engine = one("sam_encoder")
    heads.sam.decoder_engine = lambda *inputs: engine.run("sam_decoder", inputs)  # type: ignore[assignment]


def cache_folder(heads: Heads, precision: str) -> Path:
    """Folder of the exported networks of these heads in the user's cache (XDG), by weights, prompts, precision and torch."""
    key = {network: weights_hash(module_of(heads, network)) for network in heads.networks}
    sizes = asdict(NetworkSizes.of(heads))
    name = settings_fingerprint({**key, "sizes": sizes, "precision": precision, "torch": torch.__version__})[:24]
    return engine_cache() / name


def _from_cache(heads: Heads, build: Callable[[Path], Engine], precision: str) -> Engine:
    """An engine of the networks in the cache; of several processes that lack them, one exports and the others wait."""
    folder = cache_folder(heads, precision)
    if not _usable(folder, heads, precision):
        try:
            with cache_lock():
                if not _usable(folder, heads, precision):  # another process may have exported meanwhile
                    _log.info("exporting the heads' networks into %s; this is done once ...", folder)
                    export_networks(heads, folder, precision=precision)
        except OSError as error:
            raise EngineError(
                f"engines {folder}: expected a cache that can be written, got {one_line(error)}; set XDG_CACHE_HOME, or write"
                " the networks by `flmm export` and name their folder in `engines`"
            ) from error
    return build(folder)


def _usable(folder: Path, heads: Heads, precision: str) -> bool:
    """Whether a folder of the cache holds the networks of these heads, undamaged."""
    if not (folder / MANIFEST).is_file():
        return False
    try:
        check_belongs(folder, heads, precision=precision, networks=heads.networks)
    except (EngineError, FileNotFoundError) as error:  # another process may be replacing the folder
        _log.warning("exported networks in the cache cannot be used and are made again: %s", error)
        return False
    return True
