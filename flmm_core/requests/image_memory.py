"""The cached images of a pipeline, and what is freed when a command finds too little memory."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial

import numpy as np
import torch

from flmm_core.errors import memory_explained
from flmm_core.lmm.frozen_lmm import FrozenLmm
from flmm_core.requests.image_handle import ImageCache, ImageHandle, SamThread
from flmm_core.sam.refiner import SamRefiner


class ImageMemory:
    """Handles of the last images, with what both models computed of them.

    Args:
        lmm: encodes images.
        sam: encodes them, too, in a thread of its own.
        limit: bytes of all cached images together; the newest is kept whatever its size.
    """

    def __init__(self, *, lmm: FrozenLmm, sam: SamRefiner, limit: int) -> None:
        self._lmm = lmm
        make = partial(ImageHandle, encode=lmm.encode_image, start_sam=SamThread(sam).start)
        self._cache = ImageCache(limit, make)

    def handle(self, pixels: np.ndarray) -> ImageHandle:
        """The handle of ``[H, W, 3]`` uint8 RGB; the same pixels give the same handle while it is cached."""
        return self._cache.handle(pixels)

    def guard(self, *images: ImageHandle) -> AbstractContextManager[None]:
        """Free these images and all cached ones if the device runs out of memory inside the block.

        Raises:
            MemoryFullError: in place of what PyTorch raises.
        """
        return memory_explained("command", partial(self._free, images))

    def forget(self) -> None:
        """Free what is cached of all images; handles compute again what they need."""
        self._cache.forget()

    def _free(self, images: tuple[ImageHandle, ...]) -> None:
        for image in images:
            image.forget()
        self.forget()
        self._lmm.forget()
        if self._lmm.device.type == "cuda":
            torch.cuda.empty_cache()
