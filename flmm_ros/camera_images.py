"""Images of a camera by their stamps, kept until the reply to a command says on which of them it rests."""

from __future__ import annotations

import numpy as np
from sensor_msgs.msg import Image

from flmm_ros.conversions.images import image_from_message

Stamp = tuple[int, int]
"""Seconds and nanoseconds."""

MOST_IMAGES = 10_000
"""Half an hour of a camera with five images a second."""


class CameraImages:
    """Keeps every image from the last :meth:`forget` on, up to ``MOST_IMAGES``; the oldest go first.

    While nothing moves, images are equal, and equal ones in a row share their memory: a reply may take minutes.
    """

    def __init__(self) -> None:
        self._images: dict[Stamp, np.ndarray] = {}
        """In the order in which they came."""

    def __len__(self) -> int:
        return len(self._images)

    def add(self, message: Image) -> None:
        """Keep an image."""
        image = image_from_message(message, 2**31 - 1)
        before = next(reversed(self._images.values()), None)
        if before is not None and np.array_equal(before, image):
            image = before
        self._images[(message.header.stamp.sec, message.header.stamp.nanosec)] = image
        if len(self._images) > MOST_IMAGES:
            del self._images[next(iter(self._images))]

    def get(self, stamp: Stamp) -> np.ndarray | None:
        """The image of that stamp, ``[H, W, 3]`` uint8 RGB, or None if it has not come."""
        return self._images.get(stamp)

    def forget(self, before: Stamp) -> None:
        """Keep only images that are later than ``before``."""
        self._images = {stamp: image for stamp, image in self._images.items() if stamp > before}
