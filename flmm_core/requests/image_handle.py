"""Image handles: what both models computed of an image, when it is computed, and how long it is cached."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image

from flmm_core.common.tensor_memory import tensor_bytes
from flmm_core.lmm.encoded_image import EncodedImage
from flmm_core.sam.refiner import SamImage, SamRefiner


class ImageHandle:
    """An image with what the models computed of it so far. A pipeline makes it, and its commands take it.

    Args:
        pixels: ``[H, W, 3]`` uint8 RGB.
        encode: the LMM's vision tower.
        start_sam: starts SAM's image encoder in the background.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        *,
        encode: Callable[[Image.Image], EncodedImage],
        start_sam: Callable[[np.ndarray], Future[SamImage]],
    ) -> None:
        self.pixels = pixels
        self._encode = encode
        self._start_sam = start_sam
        self._lmm: EncodedImage | None = None
        self._sam: Future[SamImage] | None = None

    def lmm(self) -> EncodedImage:
        """The LMM's features of the image, with the prompt prefixes that were read with it."""
        if self._lmm is None:
            self._lmm = self._encode(Image.fromarray(self.pixels))
        return self._lmm

    def start_sam(self) -> Future[SamImage]:
        """SAM's embedding of the image, computed in the background; once, unless it failed."""
        if self._sam is None or (self._sam.done() and self._sam.exception()):
            self._sam = self._start_sam(self.pixels)
        return self._sam

    def forget(self) -> None:
        """Free what was computed of the image; it is computed again when needed."""
        self._lmm, self._sam = None, None

    @property
    def kept_bytes(self) -> int:
        """Bytes of the image and of all that is cached with it."""
        sam = self._sam.result() if self._sam and self._sam.done() and not self._sam.exception() else None
        return self.pixels.nbytes + tensor_bytes([self._lmm, sam])


class ImageCache:
    """Handles of the last images, found by their pixels.

    Args:
        limit: bytes of all handles together; the newest is kept whatever its size.
        make: makes a handle of pixels ``[H, W, 3]`` uint8 RGB.
    """

    def __init__(self, limit: int, make: Callable[[np.ndarray], ImageHandle]) -> None:
        self._limit = limit
        self._make = make
        self._handles: OrderedDict[bytes, ImageHandle] = OrderedDict()

    def handle(self, pixels: np.ndarray) -> ImageHandle:
        """The handle of an image; the earlier one if the same pixels are still cached.

        Args:
            pixels: ``[H, W, 3]`` uint8 RGB, contiguous; copied, so that the caller may reuse the array.
        """
        key = hashlib.blake2b(pixels.data, digest_size=16, salt=repr(pixels.shape[:2]).encode()[:16]).digest()
        handle = self._handles.pop(key, None) or self._make(pixels.copy())
        self._handles[key] = handle
        sizes = {key: handle.kept_bytes for key, handle in self._handles.items()}
        while sum(sizes.values()) > self._limit and len(sizes) > 1:
            oldest, _ = self._handles.popitem(last=False)
            del sizes[oldest]
        return handle

    def forget(self) -> None:
        """Free everything that is cached, also of handles that callers hold."""
        for handle in self._handles.values():
            handle.forget()
        self._handles.clear()


class SamThread:
    """Runs SAM's image encoder in its own thread and CUDA stream, while the LMM runs."""

    def __init__(self, sam: SamRefiner) -> None:
        self._sam = sam
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="sam_encoder")

    def start(self, pixels: np.ndarray) -> Future[SamImage]:
        """Start encoding ``[H, W, 3]`` uint8 RGB; the embedding is finished when the future is done."""
        return self._thread.submit(self._encode, pixels)

    def _encode(self, pixels: np.ndarray) -> SamImage:
        device = self._sam.model.device
        if device.type != "cuda":
            return self._sam.encode_image(pixels)
        stream = torch.cuda.Stream(device)
        with torch.cuda.stream(stream):
            image = self._sam.encode_image(pixels)
        stream.synchronize()
        image.embedding.record_stream(torch.cuda.default_stream(device))
        return image
