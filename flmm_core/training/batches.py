"""Which images each step of the heads' training sees."""

from __future__ import annotations

import numpy as np
from accelerate import Accelerator

from flmm_core.training.settings import HeadsSettings


class Batches:
    """Assigns images to steps: each epoch visits all of them, in an order that depends on the seed and the epoch alone.

    Args:
        images: count of the images.
        settings: seed, batch size and epochs.
        accelerator: number of this process, and count of all.
        accumulate: passes for each step of the optimiser.
    """

    def __init__(self, images: int, settings: HeadsSettings, accelerator: Accelerator, accumulate: int) -> None:
        self._images = images
        self._seed = settings.seed
        self._batch = settings.batch
        self._processes, self._process = accelerator.num_processes, accelerator.process_index
        together = self._batch * self._processes * accumulate
        self.steps = max(1, round(settings.epochs * images / together))
        """Steps of the optimiser."""
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0, int))

    def at(self, step: int) -> list[int]:
        """Positions, in the endless sequence of images, of this process's part of a pass."""
        first = (step * self._processes + self._process) * self._batch
        return list(range(first, first + self._batch))

    def image(self, place: int) -> tuple[int, int]:
        """Index of the image at a position of the sequence, and the epoch."""
        epoch, at = divmod(place, self._images)
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self._seed, 5, epoch]).permutation(self._images)
        return int(self._order[1][at]), epoch
