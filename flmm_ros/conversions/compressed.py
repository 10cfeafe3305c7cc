"""Compressed images to arrays: JPEG and PNG, as image_transport sends them."""

from __future__ import annotations

import array
import re
from io import BytesIO

import numpy as np
from PIL import Image as PilImage
from sensor_msgs.msg import CompressedImage, Image

from flmm_core.images.sixteen_bits import has_16_bit_colours, read_16_bit_colours
from flmm_ros.conversions.images import SUPPORTED_ENCODINGS, BadImageError, image_from_message, too_large

_FORMATS = ("JPEG", "PNG")
_NO_PHOTOGRAPH = re.compile(r"bayer_|\d+[USF]C\d")
"""Encodings of which one channel is no grey photograph: mosaics of colours, depths and other quantities."""


def image_from_compressed(message: CompressedImage, max_pixels: int, significant_bits: int = 0) -> np.ndarray:
    """Read a JPEG or PNG image.

    Args:
        message: its data identify themselves; of one channel, ``format`` may name the encoding before compression, for instance
            ``bayer_rggb8; png compressed``: a mosaic.
        max_pixels: largest accepted ``height * width``; larger ones are refused before they are decoded.
        significant_bits: of a PNG of 16 bits, as for :func:`~flmm_ros.conversions.images.image_from_message`.

    Returns:
        ``[H, W, 3]`` uint8 RGB, contiguous.

    Raises:
        BadImageError: the data are neither JPEG nor PNG, or damaged, or too large, or of an unsupported encoding.
    """
    samples = _decoded(message, max_pixels)
    names = {1: "mono", 3: "rgb", 4: "rgba"}
    height, width, channels = samples.shape
    encoding = f"{names[channels]}{8 * samples.itemsize}"
    named = message.format.partition(";")[0].strip()
    if channels == 1 and _NO_PHOTOGRAPH.match(named):
        if named in SUPPORTED_ENCODINGS and samples.itemsize != 1:
            raise BadImageError(f"compressed image: expected 8 bits as {named} has, got 16")
        encoding = named
    data, step = array.array("B", samples.tobytes()), width * channels * samples.itemsize
    raw = Image(encoding=encoding, height=height, width=width, step=step, data=data)
    return image_from_message(raw, max_pixels, significant_bits)


def _decoded(message: CompressedImage, max_pixels: int) -> np.ndarray:
    """``[H, W, channels]`` uint8 or little-endian uint16: grey, RGB, or RGB with an alpha that is of no meaning."""
    data = bytes(message.data)
    try:
        with PilImage.open(BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            if height * width > max_pixels:
                raise too_large(width, height, max_pixels)
            if has_16_bit_colours(image):
                return read_16_bit_colours(data).astype("<u2", copy=False)
            if image.mode.startswith("I;16"):
                return np.asarray(image).astype("<u2")[..., None]
            return np.atleast_3d(np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB")))
    except BadImageError:
        raise
    except Exception as error:  # decoders raise many types of errors on damaged data
        got = f"{len(data)} bytes in format {message.format[:40]!r}"
        raise BadImageError(f"compressed image: expected a JPEG or PNG, got {got} ({' '.join(str(error).split())})") from error
