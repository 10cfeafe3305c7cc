"""The networks of grounding heads as functions of tensors, and the interface of the engines that replace them.

Everything around them (normalising maps, padding, boxes, resizing to the image) is done by the heads, with any engine. This
file defines names, shapes and weights of the networks; it is independent of runtimes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from flmm_core.engines.names import INPUTS
from flmm_core.errors import EngineError
from flmm_core.heads.grounding_heads import GroundingHeads, trained
from flmm_core.heads.interface import Heads
from flmm_core.heads.unet import UNetHead
from flmm_core.sam.refiner import SamRefiner
from flmm_core.sam.transformers_sam import TransformersSam


class Engine(Protocol):
    """Runs networks of certain heads on one device."""

    description: str
    """Backend, provider and number format, for logs."""

    def run(self, network: str, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Outputs of one network.

        Args:
            network: of :data:`~flmm_core.engines.names.NAMES`.
            inputs: float32 on the engine's device, in the order of :meth:`NetworkSizes.inputs`.

        Returns:
            Float32 on the same device, in the order of :data:`~flmm_core.engines.names.OUTPUTS`.
        """


class _UNet(nn.Module):
    def __init__(self, head: UNetHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, maps: Tensor) -> Tensor:
        return self.head.network(maps)


class _Encoder(nn.Module):
    def __init__(self, sam: SamRefiner) -> None:
        super().__init__()
        self.encoder = sam.model.image_encoder

    def forward(self, pixels: Tensor) -> Tensor:
        embedding: Tensor = self.encoder(pixels)
        return embedding


class _Decoder(nn.Module):
    def __init__(self, sam: SamRefiner) -> None:
        super().__init__()
        self.parts = nn.ModuleList([sam.model.prompt_encoder, sam.model.mask_decoder])
        self._run = sam.decoder_network
        self._prompts = sam.config.prompts

    def forward(self, embedding: Tensor, *prompts: Tensor) -> tuple[Tensor, Tensor]:
        return self._run(embedding, **dict(zip(self._prompts, prompts, strict=True)))


def module_of(heads: Heads, network: str) -> nn.Module:
    """A network as a module that has the network's inputs and outputs and only its parameters."""
    if network == "unet":
        return _UNet(trained(heads, "U-Net").mask_head).eval()
    return (_Encoder if network == "sam_encoder" else _Decoder)(heads.sam).eval()


def weights_hash(module: nn.Module) -> str:
    """SHA-256 of names, types, shapes and values of all tensors of a module."""
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass(frozen=True)
class ShapeLimits:
    """Largest input shapes of engines that are built for fixed bounds."""

    phrases: int = 8
    """Phrases of one call; more are run in several calls."""
    side: int = 256
    """Height and width of the U-Net's input."""
    tokens: int = 128
    """Text tokens of a phrase."""

    def profile(self, network: str, sizes: NetworkSizes) -> dict[str, tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
        """Smallest, typical and largest shape of each input with a dynamic shape."""
        if network == "sam_encoder":
            return {}
        few, usual, most = 1, min(4, self.phrases), self.phrases
        if network == "unet":
            shapes = [(count, sizes.channels, side, side) for count, side in ((few, 8), (usual, 64), (most, self.side))]
            return {"maps": (shapes[0], shapes[1], shapes[2])}
        least, typical, largest = (sizes.prompt_shapes(*case) for case in ((few, 1), (usual, 3), (most, self.tokens)))
        return {name: (least[name], typical[name], largest[name]) for name in sizes.prompts}

    def check(self, inputs: Mapping[str, Tensor]) -> None:
        """Refuse inputs of a network, by their names, that exceed the limits.

        Raises:
            EngineError: names the limit.
        """
        if "maps" in inputs and max(inputs["maps"].shape[-2:]) > self.side:
            height, width = inputs["maps"].shape[-2:]
            raise EngineError(f"engine: expected maps of at most {self.side} x {self.side} cells, got {height} x {width}")
        if "texts" in inputs and inputs["texts"].shape[1] > self.tokens:
            raise EngineError(f"engine: expected phrases of at most {self.tokens} tokens, got {inputs['texts'].shape[1]}")


@dataclass(frozen=True)
class NetworkSizes:
    """Sizes of the networks of given heads that are the same in every call."""

    channels: int
    """Attention channels ``c``; 0 without a U-Net."""
    frame: int
    """Side of SAM's input, pixels."""
    embedding: tuple[int, int, int]
    """Channels, height and width of SAM's image embedding."""
    mask: tuple[int, int]
    """Height and width of a mask prompt."""
    text: int
    """Width of a text token."""
    proposals: int
    """Masks that SAM proposes for a phrase."""
    prompts: tuple[str, ...]
    """Prompts that SAM gets, by :attr:`~flmm_core.sam.refiner_config.RefinerConfig.prompts`."""
    points: int
    """Points of a phrase."""

    @classmethod
    def of(cls, heads: Heads) -> NetworkSizes:
        """The sizes of heads that use a mask and a box.

        Raises:
            ValueError: they leave one of them out, or use a SAM of transformers, which engines do not support.
        """
        sam = heads.sam
        if isinstance(sam.model, TransformersSam):
            raise ValueError(f"engines: expected a SAM of segment-anything, got {type(sam.model).__name__}")
        if not (sam.config.use_mask and sam.config.use_box):
            raise ValueError(f"engines: expected a refiner that uses mask and box, got {sam.config}")
        encoder = sam.model.prompt_encoder
        height, width = encoder.image_embedding_size
        return cls(
            channels=heads.config.unet.channels if isinstance(heads, GroundingHeads) else 0,
            frame=sam.frame,
            embedding=(sam.text_size, height, width),
            mask=sam.mask_size,
            text=sam.text_size,
            proposals=3 if sam.config.multimask else 1,
            prompts=sam.config.prompts,
            points=sam.config.points,
        )

    def inputs(self, network: str) -> tuple[str, ...]:
        """Names of a network's inputs, in order."""
        return (*INPUTS[network], *(self.prompts if network == "sam_decoder" else ()))

    def prompt_shapes(self, phrases: int, tokens: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the prompts of some phrases with as many text tokens each."""
        shapes: dict[str, tuple[int, ...]] = {
            "masks": (phrases, 1, *self.mask),
            "boxes": (phrases, 4),
            "texts": (phrases, tokens, self.text),
            "points": (phrases, self.points, 2),
            "labels": (phrases, self.points),
        }
        return {name: shapes[name] for name in self.prompts}

    def outputs(self, network: str, inputs: tuple[Tensor, ...]) -> tuple[tuple[int, ...], ...]:
        """Shapes of a network's outputs for these inputs."""
        count = len(inputs[-1])
        if network == "unet":
            return ((count, *inputs[0].shape[-2:]),)
        if network == "sam_encoder":
            return ((1, *self.embedding),)
        return (count, self.proposals, *self.mask), (count, self.proposals)

    def examples(self, network: str, *, phrases: int, grid: tuple[int, int], tokens: int, seed: int = 0) -> tuple[Tensor, ...]:
        """Realistic random inputs of the right shapes, the same for the same seed.

        Args:
            network: of :data:`~flmm_core.engines.names.NAMES`.
            phrases: ``n``.
            grid: height and width of the U-Net's input, multiples of 8.
            tokens: text tokens of each phrase.
            seed: of the random numbers.
        """
        random = torch.Generator().manual_seed(seed)
        if network == "unet":
            maps = torch.rand(phrases, self.channels, *grid, generator=random) ** 8
            return (maps / maps.sum(dim=(-2, -1), keepdim=True),)
        if network == "sam_encoder":
            return (torch.randn(1, 3, self.frame, self.frame, generator=random).clamp(-2, 2),)
        corners = torch.rand(phrases, 2, 2, generator=random).sort(dim=1).values * self.frame
        given = {
            "embedding": torch.randn(1, *self.embedding, generator=random) * 0.2,
            "masks": torch.randn(phrases, 1, *self.mask, generator=random) * 4,
            "boxes": corners.reshape(phrases, 4),
            "texts": torch.randn(phrases, tokens, self.text, generator=random) * 0.3,
            "points": torch.rand(phrases, self.points, 2, generator=random) * self.frame,
            "labels": torch.rand(phrases, self.points, generator=random).round() * 2 - 1,
        }
        return tuple(given[name] for name in self.inputs(network))
