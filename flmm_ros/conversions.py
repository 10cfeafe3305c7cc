"""ROS messages to arrays and back. The only file that knows how messages store pictures.

OpenCV does the colours. cv_bridge is not used: the one on the package index reads padded rows wrongly and knows neither
YUV nor 16-bit pictures, and the compiled one of the distributions ties NumPy to one version.
"""

from __future__ import annotations

import array
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from sensor_msgs.msg import Image, RegionOfInterest
from std_msgs.msg import Header

from flmm_core.types import GroundedAnswer, GroundedPhrase, StageSeconds
from flmm_ros.msg import GroundedPhrase as GroundedPhraseMsg
from flmm_ros.msg import StageDurations

UNLABELLED_8 = 255
UNLABELLED_16 = 65535


class BadImageError(ValueError):
    """A picture message that cannot be read; the message says what was expected and what came."""


@dataclass(frozen=True)
class _Encoding:
    """How an encoding lies in memory: rows of ``channels`` values per pixel, or a luma plane with chroma below."""

    channels: int
    bits: int = 8
    to_rgb: int | None = None
    """OpenCV colour conversion; None if the bytes are RGB already."""
    rows_per_row: float = 1.0
    """Rows of data per row of the picture: 1.5 for NV12 and NV21, whose chroma is sampled at half the size."""


# OpenCV names Bayer patterns by the second row's second and third pixel, ROS by the first row's first two.
_ENCODINGS = {
    "rgb8": _Encoding(3),
    "bgr8": _Encoding(3, to_rgb=cv2.COLOR_BGR2RGB),
    "rgba8": _Encoding(4, to_rgb=cv2.COLOR_RGBA2RGB),
    "bgra8": _Encoding(4, to_rgb=cv2.COLOR_BGRA2RGB),
    "mono8": _Encoding(1, to_rgb=cv2.COLOR_GRAY2RGB),
    "8UC1": _Encoding(1, to_rgb=cv2.COLOR_GRAY2RGB),
    "8UC3": _Encoding(3, to_rgb=cv2.COLOR_BGR2RGB),
    "rgb16": _Encoding(3, bits=16),
    "bgr16": _Encoding(3, bits=16, to_rgb=cv2.COLOR_BGR2RGB),
    "rgba16": _Encoding(4, bits=16, to_rgb=cv2.COLOR_RGBA2RGB),
    "bgra16": _Encoding(4, bits=16, to_rgb=cv2.COLOR_BGRA2RGB),
    "mono16": _Encoding(1, bits=16, to_rgb=cv2.COLOR_GRAY2RGB),
    "bayer_rggb8": _Encoding(1, to_rgb=cv2.COLOR_BayerBG2RGB),
    "bayer_bggr8": _Encoding(1, to_rgb=cv2.COLOR_BayerRG2RGB),
    "bayer_gbrg8": _Encoding(1, to_rgb=cv2.COLOR_BayerGR2RGB),
    "bayer_grbg8": _Encoding(1, to_rgb=cv2.COLOR_BayerGB2RGB),
    "yuv422": _Encoding(2, to_rgb=cv2.COLOR_YUV2RGB_UYVY),
    "uyvy": _Encoding(2, to_rgb=cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": _Encoding(2, to_rgb=cv2.COLOR_YUV2RGB_YUYV),
    "yuyv": _Encoding(2, to_rgb=cv2.COLOR_YUV2RGB_YUYV),
    "nv12": _Encoding(1, to_rgb=cv2.COLOR_YUV2RGB_NV12, rows_per_row=1.5),
    "nv21": _Encoding(1, to_rgb=cv2.COLOR_YUV2RGB_NV21, rows_per_row=1.5),
}
SUPPORTED_ENCODINGS = tuple(_ENCODINGS)


def picture_from_message(message: Image, max_pixels: int) -> np.ndarray:
    """Read a camera picture.

    Args:
        message: any of :data:`SUPPORTED_ENCODINGS`; rows may be padded.
        max_pixels: largest accepted ``height * width``.

    Returns:
        ``[H, W, 3]`` uint8 RGB, contiguous.

    Raises:
        BadImageError: unknown encoding, or encoding, size, step and length of the data do not fit together.
    """
    encoding = _ENCODINGS.get(message.encoding)
    if encoding is None:
        known = ", ".join(SUPPORTED_ENCODINGS)
        raise BadImageError(f"unsupported encoding {message.encoding[:40]!r}: expected one of {known}")
    height, width = message.height, message.width
    if height == 0 or width == 0:
        raise BadImageError(f"empty picture: got width {width}, height {height}")
    if height * width > max_pixels:
        raise BadImageError(
            f"picture of {width}x{height} is too large: expected at most {max_pixels} pixels (max_image_pixels)"
        )
    if (encoding.channels == 2 and width % 2) or (encoding.rows_per_row > 1 and (width % 2 or height % 2)):
        raise BadImageError(f"encoding {message.encoding} needs even sizes, got width {width}, height {height}")
    row_bytes = width * encoding.channels * encoding.bits // 8
    if message.step < row_bytes:
        raise BadImageError(
            f"wrong step: expected at least {row_bytes} for width {width} in {message.encoding}, got {message.step}"
        )
    rows = int(height * encoding.rows_per_row)
    expected = rows * message.step
    if len(message.data) != expected:
        got = len(message.data)
        raise BadImageError(f"wrong data size: expected {expected} bytes ({rows} rows of step {message.step}), got {got}")
    data = np.frombuffer(message.data, np.uint8).reshape(rows, message.step)[:, :row_bytes]
    try:
        return _to_rgb(np.ascontiguousarray(data), encoding, bool(message.is_bigendian))
    except cv2.error as error:
        raise BadImageError(f"cannot convert {width}x{height} {message.encoding}: {' '.join(str(error).split())}") from error


def _to_rgb(rows: np.ndarray, encoding: _Encoding, big_endian: bool) -> np.ndarray:
    """``[rows, bytes]`` uint8 to ``[H, W, 3]`` uint8 RGB."""
    if encoding.bits == 16:
        rows = (rows.view(">u2" if big_endian else "<u2") >> 8).astype(np.uint8)
    pixels = rows.reshape(rows.shape[0], -1, encoding.channels)
    if encoding.to_rgb is None:
        return np.ascontiguousarray(pixels)
    return cv2.cvtColor(pixels if encoding.channels > 1 else pixels[..., 0], encoding.to_rgb)


def image_message(pixels: np.ndarray, encoding: str, header: Header) -> Image:
    """An array as a message.

    Args:
        pixels: ``[H, W]`` or ``[H, W, channels]`` in the number format of ``encoding``.
        encoding: name for ``Image.encoding``.
        header: header of the message.
    """
    pixels = np.ascontiguousarray(pixels)
    message = Image(header=header, encoding=encoding, height=pixels.shape[0], width=pixels.shape[1])
    message.step = pixels.strides[0] if pixels.size else 0
    message.data = array.array("B", pixels.tobytes())
    return message


def phrase_messages(phrases: Sequence[GroundedPhrase], header: Header) -> list[GroundedPhraseMsg]:
    """The phrases of an answer; labels count up from 1."""
    return [_phrase_message(phrase, label, header) for label, phrase in enumerate(phrases, start=1)]


def _phrase_message(phrase: GroundedPhrase, label: int, header: Header) -> GroundedPhraseMsg:
    x0, y0, x1, y1 = (int(edge) for edge in phrase.box)
    crop = np.where(phrase.mask[y0:y1, x0:x1], 255, 0).astype(np.uint8)
    return GroundedPhraseMsg(
        text=phrase.text,
        start=phrase.start,
        end=phrase.end,
        score=float(phrase.score),
        presence=float(phrase.presence),
        absent=phrase.absent,
        label=label,
        roi=RegionOfInterest(x_offset=x0, y_offset=y0, width=x1 - x0, height=y1 - y0),
        mask=image_message(crop, "mono8", header),
    )


def phrase_from_message(message: GroundedPhraseMsg, height: int, width: int) -> GroundedPhrase:
    """The other way: a phrase with its mask in a picture of ``height x width`` pixels."""
    roi = message.roi
    box = (roi.x_offset, roi.y_offset, roi.x_offset + roi.width, roi.y_offset + roi.height)
    mask = np.zeros((height, width), bool)
    crop = np.frombuffer(message.mask.data, np.uint8).reshape(roi.height, roi.width)
    mask[box[1] : box[3], box[0] : box[2]] = crop > 0
    return GroundedPhrase(message.text, message.start, message.end, mask, box, message.score, message.presence, message.absent)


def label_map(answer: GroundedAnswer, header: Header) -> Image:
    """All masks in one picture: mono8, or mono16 for more than 254 phrases; where masks overlap the smaller one is on top."""
    many = len(answer.phrases) >= UNLABELLED_8
    dtype, unlabelled = (np.uint16, UNLABELLED_16) if many else (np.uint8, UNLABELLED_8)
    labels = np.full((answer.picture_height, answer.picture_width), unlabelled, dtype)
    by_size = sorted(enumerate(answer.phrases, start=1), key=lambda entry: -int(entry[1].mask.sum()))
    for label, phrase in by_size:
        labels[phrase.mask] = label
    return image_message(labels, "mono16" if many else "mono8", header)


def durations_message(seconds: StageSeconds, *, waiting: float, conversion: float, total: float) -> StageDurations:
    """Stage durations, all in seconds."""
    return StageDurations(
        waiting=waiting,
        conversion=conversion,
        image=seconds.image,
        lmm=seconds.lmm,
        keywords=seconds.keywords,
        mask_head=seconds.mask_head,
        refiner=seconds.refiner,
        total=total,
    )
