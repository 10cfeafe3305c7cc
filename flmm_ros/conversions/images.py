"""Image messages to arrays, and arrays to image messages. The only file that knows how messages store pixels.

cv_bridge converts what it knows. Two packages have that name: the compiled one of the ROS distributions and a pure Python one
(``cv-bridge``), which ignores ``step``, cannot read big-endian messages under NumPy 2, and knows no 16-bit, YUV or NV12
encodings. Whichever is installed is therefore given only what both convert alike: 8-bit messages without padding. The steps
before that, and all other encodings, are implemented here.
"""

from __future__ import annotations

import array
from dataclasses import dataclass

import cv2
import numpy as np
from cv_bridge import CvBridge, CvBridgeError
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from flmm_core.images.sixteen_bits import to_8_bits

_BRIDGE = CvBridge()


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
            and so does every larger value. 0: as the brightest sample of this image needs;
            see :func:`flmm_core.images.sixteen_bits.to_8_bits`.

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
    if (encoding.channels == 2 and width % 2) or (encoding.rows_per_row > 1 and (width % 2 or height % 2)):
        raise BadImageError(f"encoding {message.encoding} needs even sizes, got width {width}, height {height}")
    row_bytes = width * encoding.channels * encoding.bits // 8
    rows = int(height * encoding.rows_per_row)
    check_layout(message, row_bytes, rows, max_pixels)
    samples = np.frombuffer(message.data, np.uint8).reshape(rows, message.step)[:, :row_bytes]
    if encoding.bits == 16:
        order = ">u2" if message.is_bigendian else "<u2"
        values = np.ascontiguousarray(samples).view(order).astype(np.uint16, copy=False)
        samples = to_8_bits(values.reshape(rows, width, encoding.channels), significant_bits).reshape(rows, -1)
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


def too_large(width: int, height: int, max_pixels: int) -> BadImageError:
    """The refusal of an image that has more pixels than allowed."""
    return BadImageError(f"image of {width}x{height} is too large: expected at most {max_pixels} pixels (max_image_pixels)")


def check_layout(message: Image, row_bytes: int, rows: int, max_pixels: int) -> None:
    """Refuse a message whose fields do not fit each other.

    Args:
        message: an image or a depth image.
        row_bytes: bytes of a row without padding.
        rows: of the data.
        max_pixels: largest accepted ``height * width``.

    Raises:
        BadImageError: it is empty or too large, or step or length of the data are wrong.
    """
    height, width = message.height, message.width
    if height == 0 or width == 0:
        raise BadImageError(f"empty image: got width {width}, height {height}")
    if height * width > max_pixels:
        raise too_large(width, height, max_pixels)
    if message.step < row_bytes:
        raise BadImageError(
            f"wrong step: expected at least {row_bytes} for width {width} in {message.encoding}, got {message.step}"
        )
    expected, got = rows * message.step, len(message.data)
    if got != expected:
        raise BadImageError(f"wrong data size: expected {expected} bytes ({rows} rows of step {message.step}), got {got}")


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
