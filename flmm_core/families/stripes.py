"""Measures where the tokens of an image lie in it: other pixels in one stripe change the features of the cells there.

Each patch of the vision tower attends to itself alone meanwhile, so that a feature depends on its own pixels only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

_NAME = "flmm_patchwise"
_FEWEST, _MOST = 8, 96
"""Stripes along an axis. Two for each cell tell neighbours apart."""
_LEAST = 0.02
"""Changes below this part of a feature's largest one count as none: resizing blends a few pixels over the stripe's edge."""


def centres(features: Callable[[Image.Image], Tensor], width: int, height: int) -> np.ndarray:
    """Centre of each feature in the image.

    Args:
        features: ``[n, d]`` of an image, with the tower inside :func:`patchwise`.
        width: of the images, pixels.
        height: of the images, pixels.

    Returns:
        ``[n, 2]`` x and y in parts of the image, 0 to 1; NaN for features that do not depend on pixels.
    """
    noise = np.random.default_rng(0).integers(0, 128, (height, width, 3), dtype=np.uint8)
    before = features(Image.fromarray(noise))
    columns = (len(before) * width / height) ** 0.5
    found = [
        _along(features, noise, before, axis, int(min(max(2 * cells, _FEWEST), _MOST, noise.shape[axis])))
        for axis, cells in ((1, columns), (0, len(before) / columns))
    ]
    return np.stack(found, axis=1)


def _along(features: Callable[[Image.Image], Tensor], noise: np.ndarray, before: Tensor, axis: int, stripes: int) -> np.ndarray:
    """Centres ``[n]`` along one axis of the pixels."""
    edges = np.linspace(0, noise.shape[axis], stripes + 1).astype(int)
    changes = []
    for first, last in pairwise(edges):
        pixels = noise.copy()
        stripe = (slice(None),) * axis + (slice(first, last),)
        pixels[stripe] += 128
        after = features(Image.fromarray(pixels))
        changes.append((after - before).double().square().sum(dim=-1).cpu().numpy())
    change = np.stack(changes, axis=1)
    largest = change.max(axis=1, keepdims=True)
    change[change < _LEAST * largest] = 0
    middles = (edges[:-1] + edges[1:]) / 2 / noise.shape[axis]
    moved = largest[:, 0] > 1e-6 * float(np.median(largest)) if largest.any() else np.zeros(len(change), dtype=bool)
    return np.where(moved, (change * middles).sum(axis=1) / np.maximum(change.sum(axis=1), 1e-300), np.nan)


def _own_values(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """Each position attends to itself; queries of other positions than the keys (pooling) attend as ever."""
    if query.shape[2] != key.shape[2]:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    return value.repeat_interleave(query.shape[1] // value.shape[1], dim=1).transpose(1, 2).contiguous(), None


AttentionInterface.register(_NAME, _own_values)
AttentionMaskInterface.register(_NAME, sdpa_mask)


@contextmanager
def patchwise(model: PreTrainedModel) -> Iterator[None]:
    """Inside, positions of all parts of the model but the decoder attend to themselves alone; no gradients."""
    text = model.config.get_text_config()
    parts = {name: getattr(model.config, name, None) for name in model.config.sub_configs}
    kept = {name: part._attn_implementation for name, part in parts.items() if part is not None and part is not text}
    model.set_attn_implementation(dict.fromkeys(kept, _NAME))
    try:
        with torch.no_grad():
            yield
    finally:
        model.set_attn_implementation(kept)
