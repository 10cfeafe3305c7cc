"""From a configuration to the parts of a pipeline, on their device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from flmm_core.common.devices import resolve_device
from flmm_core.config import GroundingConfig
from flmm_core.engines.attach import attach_backend
from flmm_core.errors import explained
from flmm_core.heads.grounding_heads import GroundingHeads
from flmm_core.keywords.noun_chunks import noun_chunker
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.loading import checkpoints
from flmm_core.sam.checkpoints import load_sam

PYTORCH = "torch, fp32"
"""Description of heads that PyTorch runs."""


@dataclass(frozen=True)
class PipelineParts:
    """What a pipeline is made of."""

    lmm: FrozenLmm
    heads: GroundingHeads
    backend: str
    """What runs the networks of the heads, and in which number format."""


def load_parts(config: GroundingConfig) -> PipelineParts:
    """Load what a configuration names.

    Raises:
        LoadError: says which file cannot be used, what was expected and what was found.
        DeviceError: this machine has no such device.
    """
    device, dtype = resolve_device(config)
    if config.cpu_threads:
        torch.set_num_threads(config.cpu_threads)
    shape = checkpoints.lmm_shape(config.lmm)
    heads = checkpoints.load_heads(config.heads, shape=shape, sam=load_sam(config.sam))
    checkpoints.check_origin(config.heads, lmm=config.lmm, sam=config.sam, image_tokens=config.image_tokens)
    names = ("quantization", "image_tokens", "refer_prompt", "reuse_prefix", "cuda_graphs")
    options = {name: getattr(config, name) for name in names}
    lmm = checkpoints.load_lmm(config.lmm, device=device, dtype=dtype, **options)
    with explained("heads", config.heads):
        heads = heads.to(lmm.device).eval()
        backend = PYTORCH
        if config.heads_backend != "torch":
            chosen = {"precision": config.heads_precision, "folder": config.engines}
            backend = attach_backend(heads, config.heads_backend, device=device, **chosen).description
    if heads.keyword_selector is None:
        noun_chunker()  # loaded now rather than with the first answer
    return PipelineParts(lmm, heads, backend)


def describe_parts(config: GroundingConfig, lmm: FrozenLmm, backend: str) -> dict[str, str]:
    """What a pipeline is made of and where it runs, for people.

    Args:
        config: names the parts.
        lmm: as it was loaded.
        backend: what runs the networks of the heads.
    """
    dtype = str(lmm.model.dtype).removeprefix("torch.")
    if config.quantization != "none":
        dtype += f", {config.quantization}"
    return {
        "lmm": f"{config.lmm} ({dtype})",
        "heads": config.heads,
        "sam": config.sam,
        "heads backend": backend,
        "device": torch.cuda.get_device_name(lmm.device) if lmm.device.type == "cuda" else "cpu",
    }
