"""JPEG and PNG images as image_transport sends them."""

import io
import struct
import zlib

import cv2
import numpy as np
import pytest
from bench import IMAGE
from PIL import Image as PilImage
from sensor_msgs.msg import CompressedImage

from flmm_ros.conversions import BadImageError, image_from_compressed
from flmm_ros.msg import GroundedAnswer


def compressed(pixels, kind, **options):
    out = io.BytesIO()
    PilImage.fromarray(pixels).save(out, kind, **options)
    return CompressedImage(format=f"rgb8; {kind} compressed bgr8", data=out.getvalue())


def test_what_is_read():
    assert np.array_equal(image_from_compressed(compressed(IMAGE, "png"), 10_000), IMAGE)
    jpeg = image_from_compressed(compressed(IMAGE, "jpeg", quality=95), 10_000)
    assert jpeg.shape == IMAGE.shape and np.abs(jpeg.astype(int) - IMAGE).max() <= 4
    grey = image_from_compressed(compressed(IMAGE[..., 0], "png"), 10_000)
    assert np.array_equal(grey, np.full_like(IMAGE, 200)) and grey.flags.c_contiguous
    seen_through = np.dstack([IMAGE, np.full((24, 32), 7, np.uint8)])
    assert np.array_equal(image_from_compressed(compressed(seen_through, "png"), 10_000), IMAGE)
    deep = np.linspace(0, 1023, 24 * 32).reshape(24, 32).astype(np.uint16)
    message = compressed(deep, "png")
    assert np.array_equal(image_from_compressed(message, 10_000)[..., 0], np.rint(deep / 1023 * 255).astype(np.uint8))
    assert image_from_compressed(message, 10_000, 16).max() == 4  # 1023 of 65535


def mosaic_of(pixels):
    """What a camera with the pattern RGGB measures, ``[H, W]``."""
    mosaic = pixels[..., 1].copy()
    mosaic[::2, ::2], mosaic[1::2, 1::2] = pixels[::2, ::2, 0], pixels[1::2, 1::2, 2]
    return mosaic


@pytest.mark.parametrize("kind", ["png", "jpeg"])
def test_a_compressed_mosaic_is_read_in_colour(kind):
    message = compressed(mosaic_of(IMAGE), kind, **({"quality": 100} if kind == "jpeg" else {}))
    message.format = f"bayer_rggb8; {kind} compressed "
    assert np.abs(image_from_compressed(message, 10_000).astype(int) - IMAGE).max() <= 3
    message.format = f"mono8; {kind} compressed "
    grey = image_from_compressed(message, 10_000)
    assert (grey[..., 0] == grey[..., 1]).all()


@pytest.mark.parametrize(
    ("encoding", "dtype", "reason"),
    [
        ("bayer_rggb16", np.uint16, "unsupported encoding 'bayer_rggb16'"),
        ("16UC1", np.uint16, "unsupported encoding '16UC1'"),
        ("bayer_rggb8", np.uint16, "compressed image: expected 8 bits as bayer_rggb8 has, got 16"),
    ],
)
def test_one_channel_that_is_no_photograph_is_refused_by_name(encoding, dtype, reason):
    message = compressed(np.full((24, 32), 900, dtype), "png")
    message.format = f"{encoding}; png compressed "
    with pytest.raises(BadImageError, match=reason):
        image_from_compressed(message, 10_000)


@pytest.mark.parametrize("channels", [3, 4])
def test_colours_of_16_bits_are_as_bright_as_their_camera_meant(channels):
    deep = np.zeros((24, 32, channels), np.uint16)
    deep[..., :3] = IMAGE.astype(np.uint16) * 16  # of a camera of 12 bits
    deep[..., 3:] = 65535
    order = [2, 1, 0, 3][:channels]
    message = CompressedImage(format="rgb16; png compressed bgr16", data=cv2.imencode(".png", deep[..., order])[1].tobytes())
    assert np.abs(image_from_compressed(message, 10_000).astype(int) - IMAGE).max() <= 1
    assert np.abs(image_from_compressed(message, 10_000, 16).astype(int) - IMAGE // 16).max() <= 1


def bomb(side=9_000):
    """A PNG that says to be huge, and is a few bytes long."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"x")) + chunk(b"IEND", b"")
    return CompressedImage(format="png", data=data)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (CompressedImage(format="jpeg", data=b""), "expected a JPEG or PNG, got 0 bytes in format 'jpeg'"),
        (CompressedImage(format="x" * 100, data=b"no image"), f"got 8 bytes in format {'x' * 40!r}"),
        (CompressedImage(format="tiff", data=b"II*\x00" + bytes(100)), "expected a JPEG or PNG, got 104 bytes"),
        (bomb(60_000), "expected a JPEG or PNG"),
        (bomb(), r"image of 9000x9000 is too large: expected at most 10000 pixels \(max_image_pixels\)"),
    ],
)
def test_what_is_refused(message, reason):
    with pytest.raises(BadImageError, match=reason):
        image_from_compressed(message, 10_000)


@pytest.mark.parametrize("kind", ["jpeg", "png"])
def test_damaged_data(kind):
    random = np.random.default_rng(0)
    whole = compressed(random.integers(0, 256, (24, 32, 3), dtype=np.uint8), kind)
    for length in range(0, len(whole.data), 97):
        cut = CompressedImage(format=kind, data=bytes(whole.data)[:length])
        with pytest.raises(BadImageError, match="expected a JPEG or PNG"):
            image_from_compressed(cut, 10_000)


def test_the_node_reads_them(start_scripted):
    bench = start_scripted(
        "squeezed",
        "image_transport:=compressed",
        remap=["image:=front/image_raw"],
        image_type=CompressedImage,
        image_topic="front/image_raw/compressed",
    )
    reply = bench.ask("mean")
    assert reply.status == GroundedAnswer.STATUS_NO_IMAGE and "/squeezed/front/image_raw/compressed" in reply.reason
    reply = bench.ask_about(compressed(IMAGE, "png"), "mean")
    assert (reply.status, reply.answer) == (GroundedAnswer.STATUS_ANSWERED, "200 100 50")
    refused = bench.ask_about(CompressedImage(format="jpeg", data=b"broken"))
    assert refused.status == GroundedAnswer.STATUS_BAD_IMAGE and "expected a JPEG or PNG" in refused.reason
    assert refused.header.frame_id == "camera"
    assert bench.ask_about(compressed(IMAGE, "png"), "mean").answer == "200 100 50"
