"""Images of a camera by their stamps, kept until the reply to a command names the one that it is about."""

from __future__ import annotations

import numpy as np
from sensor_msgs.msg import Image

from flmm_ros.conversions.images import image_from_message

Stamp = tuple[int, int]
"""Seconds and nanoseconds."""

MOST_IMAGES = 10_000
"""Half an hour of a camera with five images per second."""


class CameraImages:
    """Keeps all images since the last :meth:`forget`, up to ``MOST_IMAGES``; the oldest are dropped first.

    Equal consecutive images share their memory, because a reply may take minutes in which nothing moves.
    """

    def __init__(self) -> None:
        self._images: dict[Stamp, np.ndarray] = {}
        """In order of arrival."""

    def __len__(self) -> int:
        return len(self._images)

    def add(self, message: Image) -> None:
        """Store an image.

        Raises:
            BadImageError: it cannot be read.
        """
        image = image_from_message(message, 2**31 - 1)
        before = next(reversed(self._images.values()), None)
        if before is not None and np.array_equal(before, image):
            image = before
        self._images[(message.header.stamp.sec, message.header.stamp.nanosec)] = image
        if len(self._images) > MOST_IMAGES:
            del self._images[next(iter(self._images))]

    def get(self, stamp: Stamp) -> np.ndarray | None:
        """The image with that stamp, ``[H, W, 3]`` uint8 RGB, or None if it has not arrived."""
        return self._images.get(stamp)

    def forget(self, before: Stamp) -> None:
        """Drop all images up to the stamp ``before``."""
        self._images = {stamp: image for stamp, image in self._images.items() if stamp > before}
