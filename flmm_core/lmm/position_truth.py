"""Position truth: other pixels in one region of an image change the map cells of that region, and no others.

All attention of the model is silenced behind its scores, in tower and decoder, so the features of a cell and the keys of its
column depend on the cell's own pixels alone. Then attention to all other columns changes by one factor (the softmax's sum), and
this goes from pixels to cells through the whole of preprocessing, tiles, tower, merge, sequence and layout. Where a cell lies
in the image is computed here from nothing but ``geometry``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from flmm_core.lmm.frozen_lmm import FrozenLmm

QUESTION, ANSWER = "where is the lemon?", "The yellow lemon is left of the green can."
REGIONS = {"corner": (0.0, 0.0, 0.3, 0.4), "middle": (0.37, 0.45, 0.7, 0.8), "end": (0.62, 0.55, 1.0, 1.0)}
"""Top, left, bottom and right of a region, as parts of the image."""
OUTSIDE, INSIDE = 1e-3, 1e-2
"""Most and least change of the logarithm of a cell's attention, outside and inside a region, in float32."""

_MIXING = ("Attention", "DeltaNet", "ShortConv")
"""Ends of the names of modules through which positions learn of each other."""


@dataclass(frozen=True)
class PositionTruth:
    """How far the cells outside and inside of a region changed."""

    outside: float
    """Largest change of a cell that shares no pixels with the region."""
    inside: float
    """Smallest change, in the head that changed most, of a cell that shares pixels with it."""
    picture: str
    """Cells as text: what happened (# changed, . not) against what should (X must, o may, . not)."""


@torch.no_grad()
def position_truth(
    lmm: FrozenLmm,
    image: Image.Image,
    regions: Sequence[tuple[float, float, float, float]],
    *,
    channels: slice = slice(None),
    reach: float = 0.0,
    parts: Sequence[nn.Module] = (),
) -> list[PositionTruth]:
    """Change the pixels of regions of an image, one after the other.

    Args:
        lmm: of any family.
        image: RGB.
        regions: as :data:`REGIONS`.
        channels: which channels; coarse maps want a larger ``reach`` than fine ones.
        reach: image pixels around the region that may change cells too, or may not. At least what resampling blends; for
            coarse maps that were enlarged, the pixels of two coarse cells.
        parts: modules with a tower that lie outside ``lmm.model``.
    """
    height, width = image.height, image.width
    geometry = lmm.family.prepare([image]).layouts[0].geometry
    scales = height / geometry.inner_height, width / geometry.inner_width
    blend = 2.5 * max(1.0, *scales)
    reach = max(reach, blend)
    rows = _cells(geometry.grid_height, geometry.padded_height, geometry.offset_y, scales[0])
    columns = _cells(geometry.grid_width, geometry.padded_width, geometry.offset_x, scales[1])
    found = []
    with local(lmm.model, *parts):
        before = _maps(lmm, image, channels)
        for region in regions:
            top, left, bottom, right = (round(part * size) for part, size in zip(region, (height, width) * 2, strict=True))
            pixels = np.array(image)
            pixels[top:bottom, left:right] += 128  # of uint8: no pixel stays as it is
            after = _maps(lmm, Image.fromarray(pixels), channels)
            must = _overlap(rows, top, bottom, height, -blend)[:, None] & _overlap(columns, left, right, width, -blend)[None]
            may = _overlap(rows, top, bottom, height, reach)[:, None] & _overlap(columns, left, right, width, reach)[None]
            if not must.any() or may.all():
                raise ValueError(f"region {region}: expected a part of the image that this grid can show, got none")
            factor = after - before
            change = (factor - factor[..., ~may].median(dim=-1).values[..., None, None]).abs()
            seen = change.amax(dim=(0, 1))
            found.append(PositionTruth(float(seen[~may].amax()), float(seen[must].amin()), _picture(seen, must, may)))
    return found


def _maps(lmm: FrozenLmm, image: Image.Image, channels: slice) -> Tensor:
    """Logarithms ``[t, c, h, w]`` float64 of the maps of an answer's tokens, on the CPU."""
    trace = lmm.teacher_force(lmm.encode_image(image), QUESTION, ANSWER)
    maps = trace.merged_attention([(i, i + 1) for i in range(len(trace.token_ids))])
    return maps[:, channels].double().clamp_min(1e-30).log().cpu()


def _cells(count: int, padded: int, offset: int, scale: float) -> Tensor:
    """``[count, 2]`` first and last edge of each cell along one axis, in image pixels."""
    edges = (torch.arange(count + 1) * padded / count - offset) * scale
    return torch.stack([edges[:-1], edges[1:]], dim=1)


def _overlap(cells: Tensor, first: float, last: float, size: int, reach: float) -> Tensor:
    """Which cells share pixels with ``[first - reach, last + reach)``; at the image's own edges nothing blends inwards."""
    first = first - reach if first > 0 or reach > 0 else first
    last = last + reach if last < size or reach > 0 else last
    inside = cells.clamp(0, size) if reach < 0 else cells
    return (torch.minimum(inside[:, 1], torch.tensor(last)) - torch.maximum(inside[:, 0], torch.tensor(first))) > 0


def _picture(seen: Tensor, must: Tensor, may: Tensor) -> str:
    lines = []
    for row, strict, loose in zip(seen, must, may, strict=True):
        marks = "".join("#" if value > INSIDE else "+" if value > OUTSIDE else "." for value in row.tolist())
        lines.append(marks + "  " + "".join("X" if a else "o" if b else "." for a, b in zip(strict, loose, strict=True)))
    return "\n" + "\n".join(lines)


@contextmanager
def local(*parts: nn.Module) -> Iterator[None]:
    """Inside, no position of these modules learns of another: attention adds nothing, wide convolutions see one place."""
    hooks: list[Any] = []
    kept: list[tuple[Tensor, Tensor]] = []
    for module in (module for part in parts for module in part.modules()):
        if type(module).__name__.endswith(_MIXING):
            hooks.append(module.register_forward_hook(_silence))
        if isinstance(module, nn.Conv2d) and module.kernel_size > module.stride == (1, 1):
            kept.append((module.weight, module.weight.detach().clone()))
            middle = [size // 2 for size in module.kernel_size]
            mask = torch.zeros_like(module.weight)
            mask[:, :, middle[0], middle[1]] = 1
            with torch.no_grad():
                module.weight.mul_(mask)
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for weight, values in kept:
            with torch.no_grad():
                weight.copy_(values)


def _silence(module: nn.Module, inputs: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return (torch.zeros_like(output[0]), *output[1:])
    return torch.zeros_like(output)
