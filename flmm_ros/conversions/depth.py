"""Depth messages to arrays: raw ones, and those of image_transport's compressedDepth."""

from __future__ import annotations

import struct
from io import BytesIO

import numpy as np
from PIL import Image as PilImage
from sensor_msgs.msg import CompressedImage, Image

from flmm_ros.conversions.images import BadImageError, check_layout, too_large
from flmm_ros.conversions.rvl import decode_rvl

_BITS = {"32FC1": 32, "16UC1": 16, "mono16": 16}
_HEADER = struct.Struct("<iff")
"""Before the data of compressedDepth: a number without meaning, and the two constants of quantized inverse depths."""
_SIZE = struct.Struct("<II")
"""Before the data of RVL: width and height."""


def depth_from_message(message: Image, max_pixels: int) -> np.ndarray:
    """Read a depth image (REP 118).

    Args:
        message: 32FC1 (metres), 16UC1 or mono16 (millimetres, 0 is no depth); rows may be padded.
        max_pixels: largest accepted ``height * width``.

    Returns:
        ``[H, W]`` float32 metres; NaN where there is no depth.

    Raises:
        BadImageError: another encoding, or size, step and length of the data are inconsistent.
    """
    bits = _BITS.get(message.encoding)
    if bits is None:
        got = repr(message.encoding[:40])
        raise BadImageError(f"unsupported depth encoding {got}: expected 32FC1 (metres) or 16UC1 (millimetres)")
    row_bytes = message.width * bits // 8
    check_layout(message, row_bytes, message.height, max_pixels)
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)[:, :row_bytes]
    order = ">" if message.is_bigendian else "<"
    samples = np.ascontiguousarray(rows).view(f"{order}f4" if bits == 32 else f"{order}u2")
    depth = samples.astype(np.float32)
    if bits == 16:
        depth *= 0.001
    return _metres(depth)


def depth_from_compressed(message: CompressedImage, max_pixels: int) -> np.ndarray:
    """Read a depth image of image_transport's compressedDepth.

    Args:
        message: its ``format`` names 16UC1 (millimetres) or 32FC1 (quantized inverse depths), and png or rvl.
        max_pixels: largest accepted ``height * width``; larger ones are refused before they are decoded.

    Returns:
        ``[H, W]`` float32 metres; NaN where there is no depth.

    Raises:
        BadImageError: another format, or the data are damaged or too large.
    """
    encoding, _, coding = (part.strip() for part in message.format.partition(";"))
    codec = {"": "png", "compressedDepth": "png", "compressedDepth png": "png", "compressedDepth rvl": "rvl"}.get(coding)
    if encoding not in _BITS or codec is None:
        got = repr(message.format[:60])
        raise BadImageError(f"unsupported compressed depth {got}: expected 16UC1 or 32FC1, compressedDepth png or rvl")
    data = bytes(message.data)
    try:
        _, scale, offset = _HEADER.unpack_from(data)
        decode = _from_png if codec == "png" else _from_rvl
        samples = decode(data[_HEADER.size :], max_pixels).astype(np.float32)
    except BadImageError:
        raise
    except Exception as error:  # decoders raise many types of errors on damaged data
        reason = " ".join(str(error).split())
        raise BadImageError(f"compressed depth: expected a {codec} image, got {len(data)} bytes ({reason})") from error
    if _BITS[encoding] == 16:
        return _metres(samples * np.float32(0.001))
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        return _metres(np.where(samples > 0, np.float32(scale) / (samples - np.float32(offset)), np.nan))


def _metres(depth: np.ndarray) -> np.ndarray:
    """The depth with NaN where there is none, in place."""
    depth[~(depth > 0) | np.isinf(depth)] = np.nan
    return depth


def _from_png(data: bytes, max_pixels: int) -> np.ndarray:
    """``[H, W]`` uint16."""
    with PilImage.open(BytesIO(data), formats=("PNG",)) as image:
        width, height = image.size
        if height * width > max_pixels:
            raise too_large(width, height, max_pixels)
        if not image.mode.startswith("I;16"):
            raise BadImageError(f"compressed depth: expected a grey PNG of 16 bits, got one of mode {image.mode}")
        return np.asarray(image, np.uint16)


def _from_rvl(data: bytes, max_pixels: int) -> np.ndarray:
    """``[H, W]`` uint16."""
    width, height = _SIZE.unpack_from(data)
    if height * width == 0:
        raise BadImageError(f"empty image: got width {width}, height {height}")
    if height * width > max_pixels:
        raise too_large(width, height, max_pixels)
    return decode_rvl(data[_SIZE.size :], height * width).reshape(height, width)
