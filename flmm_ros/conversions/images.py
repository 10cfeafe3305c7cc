"""Image and depth messages to arrays, and arrays to image messages. The only file that knows how messages store pixels.

cv_bridge converts what it knows. Two packages have that name: the compiled one of the ROS distributions and a pure Python one
(``cv-bridge``), which ignores ``step``, cannot read big-endian messages under NumPy 2, and knows no 16-bit, YUV or NV12
encodings. Whichever is installed is therefore given only what both convert alike: 8-bit messages without padding. The steps
before that, and all other encodings, are implemented here.
"""

from __future__ import annotations

import array
from dataclasses import dataclass
from io import BytesIO

import cv2
import numpy as np
from cv_bridge import CvBridge, CvBridgeError
from PIL import Image as PilImage
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

DEPTHS = (10, 12, 14, 16)
"""Significant bits of the 16-bit samples of common cameras."""

_BRIDGE = CvBridge()
_COMPRESSED = ("JPEG", "PNG")


class BadImageError(ValueError):
    """An image message that cannot be read; the text names what was expected and what was given."""


@dataclass(frozen=True)
class _Encoding:
    """Memory layout of an encoding: rows of ``channels`` samples per pixel, or a luma plane with the chroma plane below it."""

    channels: int
    to_rgb: str | int
    """The encoding under which cv_bridge reads the 8-bit samples, or an OpenCV colour conversion where cv_bridge has none."""
    bits: int = 8
    rows_per_row: float = 1.0
    """Rows of data per row of the image: 1.5 for NV12 and NV21, whose chroma planes have half the resolution."""


_ENCODINGS = {
    "rgb8": _Encoding(3, "rgb8"),
    "bgr8": _Encoding(3, "bgr8"),
    "rgba8": _Encoding(4, "rgba8"),
    "bgra8": _Encoding(4, "bgra8"),
    "mono8": _Encoding(1, "mono8"),
    "8UC1": _Encoding(1, "mono8"),
    "8UC3": _Encoding(3, "bgr8"),
    "rgb16": _Encoding(3, "rgb8", bits=16),
    "bgr16": _Encoding(3, "bgr8", bits=16),
    "rgba16": _Encoding(4, "rgba8", bits=16),
    "bgra16": _Encoding(4, "bgra8", bits=16),
    "mono16": _Encoding(1, "mono8", bits=16),
    "bayer_rggb8": _Encoding(1, "bayer_rggb8"),
    "bayer_bggr8": _Encoding(1, "bayer_bggr8"),
    "bayer_gbrg8": _Encoding(1, "bayer_gbrg8"),
    # The pure Python cv_bridge misspells this one. OpenCV names Bayer patterns by the second row's second and third pixel.
    "bayer_grbg8": _Encoding(1, cv2.COLOR_BayerGB2RGB),
    "yuv422": _Encoding(2, cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": _Encoding(2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": _Encoding(2, cv2.COLOR_YUV2RGB_YUYV),
    "yuyv": _Encoding(2, cv2.COLOR_YUV2RGB_YUYV),
    "nv12": _Encoding(1, cv2.COLOR_YUV2RGB_NV12, rows_per_row=1.5),
    "nv21": _Encoding(1, cv2.COLOR_YUV2RGB_NV21, rows_per_row=1.5),
}
SUPPORTED_ENCODINGS = tuple(_ENCODINGS)


def image_from_message(message: Image, max_pixels: int, significant_bits: int = 0) -> np.ndarray:
    """Read a camera image.

    Args:
        message: any of :data:`SUPPORTED_ENCODINGS`; rows may be padded.
        max_pixels: largest accepted ``height * width``.
        significant_bits: of a sample of the 16-bit encodings, 1 to 16: the largest value of that many bits becomes white,
            and so does every larger value. 0: the smallest of :data:`DEPTHS` that holds the brightest sample of this image.

    Returns:
        ``[H, W, 3]`` uint8 RGB, contiguous.

    Raises:
        BadImageError: unknown encoding, or encoding, size, step and length of the data are inconsistent.
    """
    encoding = _ENCODINGS.get(message.encoding)
    if encoding is None:
        known = ", ".join(SUPPORTED_ENCODINGS)
        raise BadImageError(f"unsupported encoding {message.encoding[:40]!r}: expected one of {known}")
    height, width = message.height, message.width
    _check_size(message, encoding, max_pixels)
    row_bytes = width * encoding.channels * encoding.bits // 8
    rows = int(height * encoding.rows_per_row)
    _check_data(message, row_bytes, rows)
    samples = np.frombuffer(message.data, np.uint8).reshape(rows, message.step)[:, :row_bytes]
    if encoding.bits == 16:
        samples = _to_8_bit(samples, encoding.channels, bool(message.is_bigendian), significant_bits)
    try:
        if isinstance(encoding.to_rgb, int):
            shape = (rows, width) if encoding.channels == 1 else (rows, width, encoding.channels)
            return cv2.cvtColor(np.ascontiguousarray(samples).reshape(shape), encoding.to_rgb)
        tight = encoding.bits == 8 and message.step == row_bytes
        data = message.data if tight else array.array("B", samples.tobytes())
        plain = Image(encoding=encoding.to_rgb, height=height, width=width, step=samples.shape[1], data=data)
        return np.ascontiguousarray(_BRIDGE.imgmsg_to_cv2(plain, "rgb8"))
    except (cv2.error, CvBridgeError) as error:
        raise BadImageError(f"cannot convert {width}x{height} {message.encoding}: {' '.join(str(error).split())}") from error


def image_from_compressed(message: CompressedImage, max_pixels: int, significant_bits: int = 0) -> np.ndarray:
    """Read a JPEG or PNG image, as image_transport sends them.

    Args:
        message: its ``format`` is ignored; the data identify themselves.
        max_pixels: largest accepted ``height * width``; larger ones are refused before they are decoded.
        significant_bits: of a 16-bit grey PNG, as for :func:`image_from_message`.

    Returns:
        ``[H, W, 3]`` uint8 RGB, contiguous.

    Raises:
        BadImageError: the data are neither JPEG nor PNG, or damaged, or too large.
    """
    try:
        with PilImage.open(BytesIO(bytes(message.data)), formats=_COMPRESSED) as image:
            width, height = image.size
            if height * width > max_pixels:
                raise _too_large(width, height, max_pixels)
            if image.mode.startswith("I;16"):
                samples = np.asarray(image, "<u2")
                grey = _to_8_bit(samples.view(np.uint8), 1, False, significant_bits)
                return np.ascontiguousarray(np.repeat(grey[..., None], 3, axis=2))
            return np.ascontiguousarray(image.convert("RGB"))
    except BadImageError:
        raise
    except Exception as error:  # decoders raise many types of errors on damaged data
        got = f"{len(message.data)} bytes in format {message.format[:40]!r}"
        raise BadImageError(f"compressed image: expected a JPEG or PNG, got {got} ({' '.join(str(error).split())})") from error


def _too_large(width: int, height: int, max_pixels: int) -> BadImageError:
    return BadImageError(f"image of {width}x{height} is too large: expected at most {max_pixels} pixels (max_image_pixels)")


def _check_size(message: Image, encoding: _Encoding, max_pixels: int) -> None:
    height, width = message.height, message.width
    if height == 0 or width == 0:
        raise BadImageError(f"empty image: got width {width}, height {height}")
    if height * width > max_pixels:
        raise _too_large(width, height, max_pixels)
    if (encoding.channels == 2 and width % 2) or (encoding.rows_per_row > 1 and (width % 2 or height % 2)):
        raise BadImageError(f"encoding {message.encoding} needs even sizes, got width {width}, height {height}")


def _check_data(message: Image, row_bytes: int, rows: int) -> None:
    if message.step < row_bytes:
        raise BadImageError(
            f"wrong step: expected at least {row_bytes} for width {message.width} in {message.encoding}, got {message.step}"
        )
    expected, got = rows * message.step, len(message.data)
    if got != expected:
        raise BadImageError(f"wrong data size: expected {expected} bytes ({rows} rows of step {message.step}), got {got}")


def _to_8_bit(rows: np.ndarray, channels: int, big_endian: bool, bits: int) -> np.ndarray:
    """``[H, bytes]`` uint8 of 16-bit samples to ``[H, samples]`` uint8; the largest value of ``bits`` bits becomes 255.

    With ``bits`` 0 the brightest colour sample decides; alpha is ignored, because drivers fill it with arbitrary values.
    """
    samples = np.ascontiguousarray(rows).view(">u2" if big_endian else "<u2").astype(np.uint16, copy=False)
    if bits == 0:
        brightest = int(samples.reshape(len(samples), -1, channels)[..., :3].max())
        bits = next(depth for depth in DEPTHS if brightest < 2**depth)
    return cv2.convertScaleAbs(samples, alpha=255 / (2**bits - 1))


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
    bits = {"32FC1": 32, "16UC1": 16, "mono16": 16}.get(message.encoding)
    if bits is None:
        got = repr(message.encoding[:40])
        raise BadImageError(f"unsupported depth encoding {got}: expected 32FC1 (metres) or 16UC1 (millimetres)")
    _check_size(message, _Encoding(1, "", bits=bits), max_pixels)
    row_bytes = message.width * bits // 8
    _check_data(message, row_bytes, message.height)
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)[:, :row_bytes]
    order = ">" if message.is_bigendian else "<"
    depth = np.ascontiguousarray(rows).view(f"{order}f4" if bits == 32 else f"{order}u2").astype(np.float32)
    if bits == 16:
        depth *= 0.001
    depth[~(depth > 0) | np.isinf(depth)] = np.nan
    return depth


def image_message(pixels: np.ndarray, encoding: str, header: Header) -> Image:
    """Convert an array to a message.

    Args:
        pixels: ``[H, W]`` or ``[H, W, channels]`` in the number format of ``encoding``; may be empty.
        encoding: name for ``Image.encoding``.
        header: header of the message.
    """
    if pixels.size == 0:  # cv_bridge would divide by the height
        return Image(header=header, encoding=encoding, height=pixels.shape[0], width=pixels.shape[1])
    message = _BRIDGE.cv2_to_imgmsg(np.ascontiguousarray(pixels), encoding)
    message.header = header
    return message
