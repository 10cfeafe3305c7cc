"""Choice of the attention heads that the U-Net sees: a calibration on some images, without training."""

from __future__ import annotations

import numpy as np
from tqdm import tqdm

from flmm_core.data.visit import spread
from flmm_core.images.geometry import unpad
from flmm_core.images.masks import share_on
from flmm_core.training.examples import ExampleReader

CALIBRATION = 64
"""Images on which the attention heads are compared."""


def best_channels(examples: ExampleReader, count: int) -> tuple[int, ...]:
    """Choose the attention channels that point best.

    The score of a channel is the mean share of its attention to the image that lies on the named object.

    Args:
        examples: to calibrate on; :data:`CALIBRATION` images are taken, spread over them.
        count: number of channels.

    Returns:
        Indices of the channels, ascending.

    Raises:
        ValueError: the LMM has fewer channels, or the images name no object.
    """
    shares: list[np.ndarray] = []
    for index in tqdm(spread(len(examples), CALIBRATION), desc="attention heads", unit="image", leave=False):
        example = examples.read(index, 0)
        present = [phrase for phrase in example.phrases if phrase.objects]
        targets = example.targets(present).numpy() > 0 if present else ()
        for phrase, truth in zip(present, targets, strict=True):
            shares.append(share_on(unpad(phrase.map[None].float(), phrase.trace.geometry)[0].numpy(), truth))
    if not shares or count > len(shares[0]):
        raise ValueError(f"attention_heads: expected at most {len(shares[0]) if shares else 0}, got {count}")
    order = np.argsort(-np.mean(shares, axis=0), kind="stable")
    return tuple(sorted(order[:count].tolist()))
