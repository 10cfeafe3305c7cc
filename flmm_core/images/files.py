"""Image files and PIL images as people see them: upright, in sRGB, 8 bits for each channel.

Commands and data sets read images only through this file.
"""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, UnidentifiedImageError

from flmm_core.common.output_files import mark, written_file
from flmm_core.images.sixteen_bits import has_16_bit_colours, read_16_bit_colours, to_8_bits

_log = logging.getLogger(__name__)

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats of image files, by Pillow's names. Its other decoders see no file: that of EPS, for instance, runs Ghostscript."""
SENT_FORMATS = ("JPEG", "PNG")
"""Formats of images that arrive over a network: their decoders allocate nothing before the size is known from the header."""
_QUARTER_TURNS = (5, 6, 7, 8)
"""EXIF orientations that exchange height and width."""


def read_image(path: Path) -> np.ndarray:
    """Read an image file, ``[H, W, 3]`` uint8 RGB; see :func:`as_seen`.

    Raises:
        ValueError: the file is missing, is no image, or is damaged.
    """
    return _read(path, f"at {path}", FORMATS)


def write_image(path: Path, image: np.ndarray, command: str) -> None:
    """Write an image file, whole or not at all, in the format that the end of its name chooses.

    Args:
        path: the file; folders above it are made.
        image: ``[H, W, 3]`` or ``[H, W]`` uint8.
        command: of `flmm` that writes it, for the file's mark.
    """
    exif = Image.Exif()
    exif[ExifTags.Base.Software] = mark(command)
    with written_file(path) as temporary:
        Image.fromarray(image).save(temporary, exif=exif)


def image_size(path: Path) -> tuple[int, int]:
    """Height and width of an image file as :func:`read_image` gives it, upright, from its header alone.

    Raises:
        ValueError: the file is missing, is no image, or is damaged.
    """
    with _opened(path, f"at {path}", FORMATS) as image:
        turned = image.getexif().get(ExifTags.Base.Orientation) in _QUARTER_TURNS
        return (image.width, image.height) if turned else (image.height, image.width)


def read_image_bytes(content: bytes) -> np.ndarray:
    """Read the content of an image file of :data:`SENT_FORMATS`, ``[H, W, 3]`` uint8 RGB; see :func:`as_seen`.

    Raises:
        ValueError: it is no image, or is damaged.
    """
    return _read(io.BytesIO(content), f"in {len(content)} bytes", SENT_FORMATS)


def _read(source: Path | io.BytesIO, place: str, formats: tuple[str, ...]) -> np.ndarray:
    with _opened(source, place, formats) as image:
        return as_seen(_from_16_bits(image, source) if has_16_bit_colours(image) else image)


def sent_image_size(content: bytes) -> tuple[int, int]:
    """Height and width by the header of an image file of :data:`SENT_FORMATS`; nothing is decoded.

    Raises:
        ValueError: it is no image of these formats, or its header is damaged.
    """
    with _opened(io.BytesIO(content), f"in {len(content)} bytes", SENT_FORMATS) as image:
        return image.height, image.width


@contextmanager
def _opened(source: Path | io.BytesIO, place: str, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """An image file; that it is missing, and what Pillow raises while it is read, becomes a ValueError."""
    if isinstance(source, Path) and not source.is_file():
        raise ValueError(f"expected an image {place}, got no such file")
    try:
        with Image.open(source, formats=formats) as image:
            yield image
    except UnidentifiedImageError as error:
        raise ValueError(f"expected an image {place}, got a file that is none of {', '.join(formats)}") from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise many types on damaged files
        raise ValueError(f"expected an image {place}, got one that cannot be read ({error})") from error


def as_seen(image: Image.Image) -> np.ndarray:
    """A PIL image as people see it, ``[H, W, 3]`` uint8 RGB.

    The EXIF orientation is applied, an embedded colour profile is converted to sRGB, 16 bits become 8 by
    :func:`~flmm_core.images.sixteen_bits.to_8_bits`, and transparent pixels are blended with white.

    Raises:
        ValueError: the values are floating-point numbers, whose range is not known.
    """
    upright = ImageOps.exif_transpose(image)
    profile = upright.info.get("icc_profile")
    image = _eight_bits(upright)
    alpha = image.getchannel("A") if "A" in image.getbands() else None
    colours = _to_srgb(image, profile) if profile else image.convert("RGB")
    if alpha is not None:
        white = Image.new("RGB", colours.size, "white")
        colours = Image.composite(colours, white, alpha)
    return np.array(colours)


def rgb_array(image: np.ndarray | Image.Image) -> np.ndarray:
    """Check an image and return it as contiguous ``[H, W, 3]`` uint8 RGB; a PIL image :func:`as people see it <as_seen>`."""
    if isinstance(image, Image.Image):
        image = as_seen(image)
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        got = f"{image.dtype} {list(image.shape)}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"image: expected uint8 RGB of shape [H, W, 3] or a PIL image, got {got}")
    if 0 in image.shape:
        raise ValueError(f"image: expected at least one pixel, got {list(image.shape)}")
    return np.ascontiguousarray(image)


def _from_16_bits(image: Image.Image, source: Path | io.BytesIO) -> Image.Image:
    """The image with 8 bits for each colour, with its orientation and its colour profile; Pillow would cut off the lower 8."""
    content = source.read_bytes() if isinstance(source, Path) else source.getvalue()
    reduced = Image.fromarray(to_8_bits(read_16_bit_colours(content)))
    reduced.info = {**image.info, "exif": image.getexif().tobytes()}
    return reduced


def _eight_bits(image: Image.Image) -> Image.Image:
    """The image in L, LA, RGB, RGBA, CMYK, LAB or YCbCr."""
    if image.mode == "F":
        raise ValueError("image: expected 8 or 16 bits for each channel, got floating-point values")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.size and not 0 <= values.min() <= values.max() <= 0xFFFF:
            raise ValueError(f"image: expected values of 16 bits, got {values.min()} to {values.max()}")
        return Image.fromarray(to_8_bits(values.astype(np.uint16)))
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("P", "PA") or "transparency" in image.info:
        return image.convert("RGBA" if image.has_transparency_data else "RGB")
    return image


def _to_srgb(image: Image.Image, profile: bytes) -> Image.Image:
    """Convert from the colours of an embedded profile; one that is damaged or of other channels is ignored, as browsers do."""
    source = image.convert("RGB") if image.mode == "RGBA" else image.convert("L") if image.mode == "LA" else image
    try:
        converted = ImageCms.profileToProfile(
            source, ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError) as error:
        _log.warning("image: its colour profile is ignored, it cannot be used (%s)", error)
        return image.convert("RGB")
    return converted if converted is not None else image.convert("RGB")
