"""Compares the outputs of an engine with PyTorch's before it is used.

Engines are sometimes miscompiled, on some devices only. Each engine is therefore compared on its own device, on fixed random
inputs and on those of a black image, for several numbers of phrases, grids and tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flmm_core.engines.names import LOGITS, OUTPUTS
from flmm_core.engines.networks import Engine, NetworkSizes, module_of
from flmm_core.errors import EngineError
from flmm_core.heads.interface import Heads
from flmm_core.images.masks import Overlap

LIMITS = {"fp32": (1e-3, 0.999), "fp16": (3e-2, 0.995)}
"""Largest difference, relative to the largest value of the output, and least IoU of the positive logits, by precision."""

_SHAPES = ((1, (64, 64), 1), (3, (48, 64), 4), (2, (64, 40), 9))
"""Number of phrases, grid, and tokens of each phrase."""


@dataclass(frozen=True)
class Parity:
    """Worst differences of one output of an engine from PyTorch's, over all inputs."""

    network: str
    output: str
    difference: float
    """Largest difference, relative to the largest value."""
    iou: float
    """Least IoU of the positive logits; 1 for other outputs."""

    @property
    def is_logits(self) -> bool:
        """Whether the output consists of mask logits."""
        return self.output in LOGITS

    def passed(self, precision: str) -> bool:
        """Whether the differences are within the limits; NaN is not."""
        most, least = LIMITS[precision]
        return self.difference <= most and self.iou >= least


@torch.no_grad()
def measure(engine: Engine, heads: Heads, *, device: torch.device, networks: Sequence[str] | None = None) -> tuple[Parity, ...]:
    """Compare an engine with PyTorch.

    Args:
        engine: of the heads.
        heads: on ``device``.
        device: that both run on.
        networks: which to compare; None for all of the heads.
    """
    found: list[Parity] = []
    for network in heads.networks if networks is None else networks:
        module = module_of(heads, network)
        worst = {output: Parity(network, output, 0.0, 1.0) for output in OUTPUTS[network]}
        for inputs in _inputs(network, heads, device):
            expected = module(*inputs)
            expected = expected if isinstance(expected, tuple) else (expected,)
            for output, got, want in zip(OUTPUTS[network], engine.run(network, inputs), expected, strict=True):
                worst[output] = _worse(worst[output], got, want)
        found += worst.values()
    return tuple(found)


def require(found: Sequence[Parity], *, precision: str, what: str) -> None:
    """Refuse an engine whose outputs differ from PyTorch's.

    Raises:
        EngineError: states the differences.
    """
    most, least = LIMITS[precision]
    for one in found:
        if not one.passed(precision):
            raise EngineError(
                f"{what}: expected {one.network}'s {one.output} within {most:g} of PyTorch's and an IoU of at least {least},"
                f" got {one.difference:.2g} and {one.iou:.4f}"
            )


def _inputs(network: str, heads: Heads, device: torch.device) -> Iterator[tuple[Tensor, ...]]:
    sizes = NetworkSizes.of(heads)
    for seed, (phrases, grid, tokens) in enumerate(_SHAPES if network != "sam_encoder" else _SHAPES[:1]):
        given = sizes.examples(network, phrases=phrases, grid=grid, tokens=tokens, seed=seed)
        yield tuple(value.to(device) for value in given)
    if network == "sam_encoder":
        black = heads.sam.model.preprocess(torch.zeros(1, 3, sizes.frame, sizes.frame, device=device))
        yield (black,)
    elif network == "unet":  # no attention at all
        yield (torch.zeros(1, sizes.channels, 64, 64, device=device),)


def _worse(before: Parity, got: Tensor, want: Tensor) -> Parity:
    scale = float(want.abs().max().clamp_min(1e-6))
    difference = float((got - want).abs().max()) / scale
    iou = 1.0
    if before.is_logits:
        clear = want.abs() > 1e-3 * scale  # rounding decides the sign of logits closer to 0
        iou = Overlap.of(got[clear] > 0, want[clear] > 0).agreement
    worst = difference if difference != difference else max(before.difference, difference)
    return Parity(before.network, before.output, worst, min(before.iou, iou))
