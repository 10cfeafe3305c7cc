"""From a configuration to the parts of a pipeline, on their device."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import torch
from segment_anything.modeling import ImageEncoderViT

from flmm_core.common.devices import resolve_device
from flmm_core.config import ATTENTION, GroundingConfig
from flmm_core.engines.attach import attach_backend
from flmm_core.errors import explained
from flmm_core.families import LmmShape
from flmm_core.heads.attention_heads import IMITATED_PROMPTS, PROMPTS, AttentionHeads
from flmm_core.heads.interface import Heads
from flmm_core.keywords.noun_chunks import noun_chunker
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.loading import checkpoints
from flmm_core.loading.defaults import resolved
from flmm_core.loading.head_choices import check_fits, is_choice, kept_choice, read_choice
from flmm_core.sam.checkpoints import load_sam
from flmm_core.sam.refiner import SamRefiner
from flmm_core.sam.transformers_sam import TransformersSam

_log = logging.getLogger(__name__)

PYTORCH = "torch, fp32"
"""Description of heads that PyTorch runs."""


@dataclass(frozen=True)
class PipelineParts:
    """What a pipeline is made of."""

    lmm: FrozenLmm
    heads: Heads
    config: GroundingConfig
    """What was asked for, with the heads and the SAM that were taken."""
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
    config = resolved(config)
    heads = load_heads_and_sam(config)
    _log.info("heads: %s (%s); SAM: %s", config.heads, heads.description, config.sam)
    names = ("quantization", "image_tokens", "refer_prompt", "reuse_prefix", "cuda_graphs")
    options = {name: getattr(config, name) for name in names} | {"spread": config.device == "auto"}
    lmm = checkpoints.load_lmm(config.lmm, device=device, dtype=dtype, **options)
    with explained("heads", config.heads):
        heads = heads.to(lmm.device).eval()
        backend = PYTORCH
        if config.heads_backend != "torch":
            chosen = {"precision": config.heads_precision, "folder": config.engines}
            backend = attach_backend(heads, config.heads_backend, device=device, **chosen).description
    if not heads.selects_keywords:
        noun_chunker()  # loaded now rather than with the first answer
    return PipelineParts(lmm, heads, config, backend)


def load_heads_and_sam(config: GroundingConfig) -> Heads:
    """Heads of either kind with their SAM, on the CPU.

    Args:
        config: of :func:`~flmm_core.loading.defaults.resolved`.

    Raises:
        LoadError: they do not belong to the LMM, or a file cannot be used.
    """
    shape = checkpoints.lmm_shape(config.lmm)
    if config.heads == ATTENTION or is_choice(config.heads):
        return _attention_heads(config, shape)
    heads = checkpoints.load_heads(config.heads, shape=shape, sam=load_sam(config.sam))
    checkpoints.check_origin(config.heads, lmm=config.lmm, sam=config.sam, image_tokens=config.image_tokens)
    if heads.presence is None and (kept := kept_choice(config.lmm)):
        presence = read_choice(kept).presence
        heads.attention_presence = None if presence is None else presence.score
    return heads


def _attention_heads(config: GroundingConfig, shape: LmmShape) -> AttentionHeads:
    sam = load_sam(config.sam)
    stock = isinstance(sam, TransformersSam) or isinstance(sam.image_encoder, ImageEncoderViT)
    refiner = SamRefiner(sam=sam, config=PROMPTS if stock else IMITATED_PROMPTS)
    if config.heads == ATTENTION:
        return AttentionHeads(sam=refiner, layers=shape.layers).eval()
    choice = read_choice(config.heads)
    check_fits(choice, config.heads, lmm=config.lmm, channels=shape.channels)
    return AttentionHeads(
        sam=refiner,
        layers=shape.layers,
        channels=[head.channel for head in choice.heads],
        presence=None if choice.presence is None else choice.presence.score,
    ).eval()


def describe_parts(config: GroundingConfig, lmm: FrozenLmm, heads: Heads, backend: str) -> dict[str, str]:
    """What a pipeline is made of and where it runs, for people.

    Args:
        config: names the parts.
        lmm: as it was loaded.
        heads: as they were loaded.
        backend: what runs the networks of the heads.
    """
    dtype = str(lmm.model.dtype).removeprefix("torch.")
    if config.quantization != "none":
        dtype += f", {config.quantization}"
    return {
        "lmm": f"{config.lmm} ({dtype})",
        "heads": f"{config.heads} ({heads.description})",
        "sam": config.sam,
        "heads backend": backend,
        "device": _devices(lmm),
    }


def _devices(lmm: FrozenLmm) -> str:
    """Names of the devices of an LMM: nearly always one."""
    found = dict.fromkeys(parameter.device for parameter in lmm.model.parameters())
    return " + ".join(torch.cuda.get_device_name(one) if one.type == "cuda" else one.type for one in found)
