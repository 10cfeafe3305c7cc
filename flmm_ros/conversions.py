"""ROS messages to arrays and back. The only file that knows how messages store images.

cv_bridge converts what it knows. Two packages have that name: the compiled one of the ROS distributions and a pure Python one
(``cv-bridge``), which ignores ``step``, cannot read big-endian messages under NumPy 2, and knows no 16-bit, YUV or NV12
images. So whichever is installed gets only what both convert alike: 8-bit messages without padding. What leads there, and
the encodings beyond, are here.
"""

from __future__ import annotations

import array
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO

import cv2
import numpy as np
import torch
from cv_bridge import CvBridge, CvBridgeError
from geometry_msgs.msg import Point, Pose, Quaternion, Vector3
from PIL import Image as PilImage
from sensor_msgs.msg import CompressedImage, Image, PointCloud2, PointField, RegionOfInterest
from std_msgs.msg import Header

from flmm_core.spatial.location import Location
from flmm_core.types import GroundedAnswer, GroundedPhrase, StageSeconds
from flmm_ros.msg import GroundedPhrase as GroundedPhraseMsg
from flmm_ros.msg import Location as LocationMsg
from flmm_ros.msg import StageDurations

UNLABELLED_8 = 255
UNLABELLED_16 = 65535

DEPTHS = (10, 12, 14, 16)
"""Significant bits that cameras deliver in 16-bit samples."""

_BRIDGE = CvBridge()
_COMPRESSED = ("JPEG", "PNG")


class BadImageError(ValueError):
    """An image message that cannot be read; the message says what was expected and what came."""


@dataclass(frozen=True)
class _Encoding:
    """How an encoding lies in memory: rows of ``channels`` values per pixel, or a luma plane with chroma below."""

    channels: int
    to_rgb: str | int
    """Encoding as which cv_bridge reads the 8-bit samples; or an OpenCV colour conversion, where it knows none."""
    bits: int = 8
    rows_per_row: float = 1.0
    """Rows of data per row of the image: 1.5 for NV12 and NV21, whose chroma is sampled at half the size."""


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
        significant_bits: of a sample of the 16-bit encodings, 1 to 16: the largest value that these can hold becomes white,
            as does what lies above. 0: the least of :data:`DEPTHS` that holds the brightest sample of this image.

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
        message: its ``format`` is not looked at: what the data are, they say themselves.
        max_pixels: largest accepted ``height * width``; larger ones are refused before they are decoded.
        significant_bits: of a 16-bit grey PNG, as for :func:`image_from_message`.

    Returns:
        ``[H, W, 3]`` uint8 RGB, contiguous.

    Raises:
        BadImageError: the data are neither, or damaged, or too large.
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
    except Exception as error:  # decoders raise many types on damaged data
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
    """``[H, bytes]`` uint8 of 16-bit samples to ``[H, samples]`` uint8, so that the largest value of ``bits`` bits is 255.

    With ``bits`` 0 the brightest colour sample decides; alpha does not count, as drivers fill it with any value.
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
        BadImageError: another encoding, or size, step and length of the data do not fit together.
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


def location_message(location: Location, frame_id: str) -> LocationMsg:
    """Where a thing is, in a frame."""
    return LocationMsg(
        valid=True,
        frame_id=frame_id,
        on_surface=location.up is not None,
        up=Vector3(**_xyz(location.up)) if location.up is not None else Vector3(),
        centroid=Point(**_xyz(location.centroid)),
        extent=Vector3(**_xyz(location.extent)),
        box=pose_message(location.box_center, location.box_axes),
        box_size=Vector3(**_xyz(location.box_size)),
        depth_fraction=float(location.depth_fraction),
    )


def location_from_message(message: LocationMsg) -> Location:
    """The other way, without the points: of a message that is valid."""
    return Location(
        points=np.empty((0, 3), np.float32),
        centroid=_vector(message.centroid),
        extent=_vector(message.extent),
        box_center=_vector(message.box.position),
        box_axes=rotation_from_message(message.box.orientation),
        box_size=_vector(message.box_size),
        depth_fraction=message.depth_fraction,
        up=_vector(message.up) if message.on_surface else None,
    )


def pose_message(position: np.ndarray, rotation: np.ndarray) -> Pose:
    """A place and a frame there.

    Args:
        position: ``[3]`` metres.
        rotation: ``[3, 3]``, axes as columns.
    """
    x, y, z, w = _quaternion(rotation)
    return Pose(position=Point(**_xyz(position)), orientation=Quaternion(x=x, y=y, z=z, w=w))


def _vector(message: Point | Vector3) -> np.ndarray:
    return np.array([message.x, message.y, message.z])


def rotation_from_message(message: Quaternion) -> np.ndarray:
    """``[3, 3]`` rotation matrix of a unit quaternion."""
    x, y, z, w = message.x, message.y, message.z, message.w
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _xyz(vector: np.ndarray) -> dict[str, float]:
    return dict(zip("xyz", map(float, vector), strict=True))


def _quaternion(rotation: np.ndarray) -> tuple[float, float, float, float]:
    """x, y, z, w of a rotation matrix: the eigenvector that Bar-Itzhack's symmetric matrix has for its largest eigenvalue."""
    (xx, xy, xz), (yx, yy, yz), (zx, zy, zz) = rotation.tolist()
    matrix = [
        [xx - yy - zz, yx + xy, zx + xz, zy - yz],
        [yx + xy, yy - xx - zz, zy + yz, xz - zx],
        [zx + xz, zy + yz, zz - xx - yy, yx - xy],
        [zy - yz, xz - zx, yx - xy, xx + yy + zz],
    ]
    x, y, z, w = np.linalg.eigh(np.array(matrix) / 3)[1][:, -1].tolist()
    return x, y, z, w


def points_message(labelled: Sequence[tuple[int, np.ndarray]], header: Header) -> PointCloud2:
    """Points of things, each with the label of its phrase.

    Args:
        labelled: label and ``[k, 3]`` float32 metres of each thing.
        header: of the message.
    """
    count = sum(len(points) for _, points in labelled)
    rows = np.zeros(count, [("x", "<f4"), ("y", "<f4"), ("z", "<f4"), ("label", "<u4")])
    begin = 0
    for label, points in labelled:
        part = rows[begin : begin + len(points)]
        part["x"], part["y"], part["z"] = points.T
        part["label"] = label
        begin += len(points)
    fields = [PointField(name=name, offset=4 * i, datatype=PointField.FLOAT32, count=1) for i, name in enumerate("xyz")]
    fields.append(PointField(name="label", offset=12, datatype=PointField.UINT32, count=1))
    data = array.array("B", rows.tobytes())
    return PointCloud2(
        header=header, height=1, width=count, fields=fields, point_step=16, row_step=16 * count, data=data, is_dense=True
    )


def image_message(pixels: np.ndarray, encoding: str, header: Header) -> Image:
    """An array as a message.

    Args:
        pixels: ``[H, W]`` or ``[H, W, channels]`` in the number format of ``encoding``; may be empty.
        encoding: name for ``Image.encoding``.
        header: header of the message.
    """
    if pixels.size == 0:  # cv_bridge divides by the height
        return Image(header=header, encoding=encoding, height=pixels.shape[0], width=pixels.shape[1])
    message = _BRIDGE.cv2_to_imgmsg(np.ascontiguousarray(pixels), encoding)
    message.header = header
    return message


def phrase_message(phrase: GroundedPhrase, label: int, header: Header, location: LocationMsg) -> GroundedPhraseMsg:
    """A phrase of an answer.

    Args:
        phrase: with its mask.
        label: in the label map; phrases count up from 1.
        header: of the image.
        location: where the thing is, or why that is not known.
    """
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
        location=location,
    )


def phrase_from_message(message: GroundedPhraseMsg, height: int, width: int) -> GroundedPhrase:
    """The other way: a phrase with its mask in an image of ``height x width`` pixels."""
    roi = message.roi
    box = (roi.x_offset, roi.y_offset, roi.x_offset + roi.width, roi.y_offset + roi.height)
    mask = np.zeros((height, width), bool)
    crop = np.frombuffer(message.mask.data, np.uint8).reshape(roi.height, roi.width)
    mask[box[1] : box[3], box[0] : box[2]] = crop > 0
    return GroundedPhrase(
        message.text,
        message.start,
        message.end,
        torch.from_numpy(mask),
        box,
        message.score,
        message.presence,
        message.absent,
    )


def label_map(answer: GroundedAnswer, header: Header) -> Image:
    """All masks in one image: mono8, or mono16 for more than 254 phrases; where masks overlap the smaller one is on top."""
    many = len(answer.phrases) >= UNLABELLED_8
    dtype, unlabelled = (np.uint16, UNLABELLED_16) if many else (np.uint8, UNLABELLED_8)
    labels = np.full((answer.image_height, answer.image_width), unlabelled, dtype)
    by_size = sorted(enumerate(answer.phrases, start=1), key=lambda entry: -int(entry[1].mask.sum()))
    for label, phrase in by_size:
        labels[phrase.mask] = label
    return image_message(labels, "mono16" if many else "mono8", header)


def durations_by_stage(durations: StageDurations) -> dict[str, float]:
    """Seconds by stage, ``total`` among them."""
    return {stage: float(getattr(durations, stage)) for stage in StageDurations.get_fields_and_field_types()}


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
