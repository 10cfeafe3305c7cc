"""Messages to arrays and back, without a graph; tests/ros/test_bad_input.py sends some to a real node."""

import array
import struct

import cv2
import numpy as np
import pytest
from encodings_of_images import as_encoding

pytest.importorskip("rclpy", reason="rclpy is not installed: `make setup`")
pytest.importorskip("flmm_ros.msg", reason="the messages of flmm_ros are not built: `make setup`")

from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from flmm_ros.conversions import (
    SUPPORTED_ENCODINGS,
    BadImageError,
    depth_from_compressed,
    image_from_message,
    image_message,
)

ANY_SIZE = 2**31 - 1


def message_of(pixels, encoding, *, padding=0, big_endian=False):
    """A message whose rows end with ``padding`` bytes of no meaning."""
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(height, -1)
    rows = np.concatenate([rows, np.full((height, padding), 170, np.uint8)], 1)
    message = Image(encoding=encoding, height=height, width=width, step=rows.shape[1], is_bigendian=int(big_endian))
    message.data = array.array("B", rows.tobytes())
    return message


def gradient(bits):
    """``[4, 256]`` uint16: from black to the brightest value of so many bits."""
    return np.tile(np.linspace(0, 2**bits - 1, 256).round().astype(np.uint16), (4, 1))


RAMP = np.tile(np.arange(256)[:, None], (4, 1, 3)).reshape(4, 256, 3)
"""What every gradient looks like in 8 bits."""


IMAGE = np.full((24, 32, 3), (200, 100, 50), np.uint8)

UNSUPPORTED = [
    "32FC1", "32FC3", "16UC1", "16SC1", "32SC1", "64FC1", "8SC1", "8UC2", "8UC4", "16UC3", "bayer_rggb16", "nv24",
    "jpeg", "RGB8", "rgb8 ", "", "x" * 10_000, "日本語",
]  # fmt: skip


@pytest.mark.parametrize("encoding", SUPPORTED_ENCODINGS)
def test_supported_encodings_give_the_right_colours(encoding):
    pixels, colour = as_encoding(IMAGE, encoding)
    message = message_of(pixels, encoding)
    message.height = 24
    image = image_from_message(message, ANY_SIZE)
    assert image.shape == IMAGE.shape and image.dtype == np.uint8
    assert np.abs(image.mean(axis=(0, 1)) - colour).max() <= 3


@pytest.mark.parametrize("encoding", UNSUPPORTED, ids=lambda name: name[:12] or "empty")
def test_unsupported_encodings_are_refused_by_name(encoding):
    with pytest.raises(BadImageError) as error:
        image_from_message(message_of(IMAGE, encoding), ANY_SIZE)
    assert repr(encoding[:40]) in str(error.value) and "rgb8" in str(error.value) and len(str(error.value)) < 1000


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"step": 95}, "wrong step: expected at least 96"),
        ({"step": 0}, "wrong step: expected at least 96"),
        ({"step": 97}, "wrong data size: expected 2328 bytes (24 rows of step 97), got 2304"),
        ({"step": 2**32 - 1}, "wrong data size"),
        ({"height": 25}, "wrong data size: expected 2400 bytes (25 rows of step 96), got 2304"),
        ({"height": 23}, "wrong data size"),
        ({"data": []}, "wrong data size: expected 2304 bytes (24 rows of step 96), got 0"),
        ({"width": 0}, "empty image: got width 0, height 24"),
        ({"height": 0}, "empty image: got width 32, height 0"),
        ({"width": 0, "height": 0, "step": 0, "data": []}, "empty image"),
        ({"width": 2**32 - 1, "height": 2**32 - 1}, "too large"),
        ({"encoding": "yuyv", "width": 31}, "needs even sizes"),
        ({"encoding": "rgba8"}, "wrong step: expected at least 128 for width 32 in rgba8, got 96"),
    ],
    ids=str,
)
def test_fields_that_do_not_fit_are_refused(changed, reason):
    message = message_of(IMAGE, "rgb8")
    for name, value in changed.items():
        setattr(message, name, value)
    with pytest.raises(BadImageError) as error:
        image_from_message(message, 16_777_216)
    assert reason in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("padding", [0, 6])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_16_bit_images_are_as_bright_as_their_camera_meant(bits, order, padding):
    message = message_of(gradient(bits).astype(f"{order}u2"), "mono16", padding=padding, big_endian=order == ">")
    assert np.abs(image_from_message(message, ANY_SIZE).astype(int) - RAMP).max() <= 1
    assert (image_from_message(message, ANY_SIZE) == image_from_message(message, ANY_SIZE, bits)).all()


@pytest.mark.parametrize(("brightest", "bits"), [(0, 10), (30, 10), (1023, 10), (1024, 12), (4096, 14), (16384, 16)])
def test_brightest_sample_decides_the_bits(brightest, bits):
    pixels = np.zeros((2, 3), np.uint16)
    pixels[1, 2] = brightest
    image = image_from_message(message_of(pixels, "mono16"), ANY_SIZE)
    assert image[1, 2].tolist() == [round(brightest * 255 / (2**bits - 1))] * 3 and not image[0].any()


def test_given_bits_are_kept_in_the_dark_and_cut_above():
    dark = message_of(np.array([[1000, 2000]], np.uint16), "mono16")
    assert image_from_message(dark, ANY_SIZE, 16)[0, :, 0].tolist() == [4, 8]
    bright = message_of(np.array([[1023, 1024, 65535]], np.uint16), "mono16")
    assert image_from_message(bright, ANY_SIZE, 10)[0, :, 0].tolist() == [255, 255, 255]


def test_colours_share_their_bits_and_alpha_does_not_count():
    pixels = np.array([[[4095, 2048, 0, 65535]]], np.uint16)
    assert image_from_message(message_of(pixels, "rgba16"), ANY_SIZE)[0, 0].tolist() == [255, 128, 0]
    assert image_from_message(message_of(pixels, "bgra16"), ANY_SIZE)[0, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "8UC3", "mono8", "bayer_rggb8", "bayer_grbg8", "yuv422_yuy2", "nv12"])
def test_padding_and_byte_order_of_8_bit_images_change_nothing(encoding):
    channels = {"rgb8": 3, "bgr8": 3, "8UC3": 3, "yuv422_yuy2": 2}.get(encoding, 1)
    pixels = np.random.default_rng(0).integers(0, 256, (6, 4, channels), np.uint8)
    plain, padded = message_of(pixels, encoding), message_of(pixels, encoding, padding=7, big_endian=True)
    for message in (plain, padded) if encoding == "nv12" else ():
        message.height = 4  # of 6 rows, the last two hold the chroma
    image = image_from_message(plain, ANY_SIZE)
    assert image.shape == (plain.height, 4, 3) and image.flags.c_contiguous
    assert (image == image_from_message(padded, ANY_SIZE)).all()


@pytest.mark.parametrize(
    ("shape", "dtype", "encoding"),
    [((3, 5, 3), np.uint8, "rgb8"), ((3, 5), np.uint8, "mono8"), ((3, 5), np.uint16, "mono16"), ((3, 5), np.float32, "32FC1")],
)
def test_arrays_become_messages(shape, dtype, encoding):
    pixels = np.arange(np.prod(shape)).reshape(shape[::-1]).T.astype(dtype)  # not contiguous
    header = Header(frame_id="camera")
    message = image_message(pixels.reshape(shape), encoding, header)
    assert (message.height, message.width, message.encoding, message.header) == (3, 5, encoding, header)
    assert message.step == pixels.nbytes // 3 and not message.is_bigendian
    assert (np.frombuffer(message.data, dtype).reshape(shape) == pixels.reshape(shape)).all()


def test_an_empty_mask_becomes_an_empty_message():
    message = image_message(np.zeros((0, 0), np.uint8), "mono8", Header())
    assert (message.height, message.width, message.step, len(message.data)) == (0, 0, 0, 0)


# --- compressed depth -----------------------------------------------------------------------------------------------------


def rvl(pixels):
    """A depth image, ``[H, W]`` uint16, as RVL: written number by number, as the paper describes it."""
    groups, previous, flat = [], 0, pixels.ravel().tolist()

    def number(value):
        while True:
            groups.append(value & 7 | (8 if value > 7 else 0))
            value >>= 3
            if not value:
                return

    place = 0
    while place < len(flat):
        for wanted in (False, True):
            end = place
            while end < len(flat) and bool(flat[end]) == wanted:
                end += 1
            number(end - place)
            for value in flat[place:end] if wanted else ():
                delta, previous = value - previous, value
                number(2 * delta if delta >= 0 else -2 * delta - 1)
            place = end
    groups += [0] * (-len(groups) % 8)
    words = [sum(group << (28 - 4 * i) for i, group in enumerate(groups[at : at + 8])) for at in range(0, len(groups), 8)]
    return struct.pack("<II", *pixels.shape[::-1]) + struct.pack(f"<{len(words)}I", *words)


def png(pixels):
    return cv2.imencode(".png", pixels)[1].tobytes()


def compressed_depth(samples, encoding, codec, *, constants=(0.0, 0.0), coding="compressedDepth {}"):
    data = struct.pack("<iff", 0, *constants) + (rvl if codec == "rvl" else png)(samples)
    return CompressedImage(format=f"{encoding}; {coding.format(codec)}", data=array.array("B", data))


DEPTH = np.random.default_rng(0).integers(0, 65536, (24, 32)).astype(np.uint16)
DEPTH[3:9, 5:20] = 0
DEPTH[12:, :7] = 1500


@pytest.mark.parametrize("codec", ["png", "rvl"])
def test_compressed_millimetres(codec):
    found = depth_from_compressed(compressed_depth(DEPTH, "16UC1", codec), ANY_SIZE)
    assert found.dtype == np.float32 and np.array_equal(np.isnan(found), DEPTH == 0)
    assert np.nan_to_num(found) == pytest.approx(DEPTH * 0.001, rel=1e-6)


@pytest.mark.parametrize("codec", ["png", "rvl"])
def test_compressed_metres_are_quantized_inverse_depths(codec):
    metres = np.linspace(0.3, 9.0, 24 * 32, dtype=np.float32).reshape(24, 32)
    scale = 100.0 * 101.0
    offset = 1.0 - scale / 10.0  # for depths up to 10 m
    samples = (scale / metres + offset).astype(np.uint16)
    samples[0, :5] = 0
    found = depth_from_compressed(compressed_depth(samples, "32FC1", codec, constants=(scale, offset)), ANY_SIZE)
    assert np.isnan(found[0, :5]).all() and np.abs(found[1:] / metres[1:] - 1).max() < 0.01


def test_the_format_of_older_compressed_depth():
    for name in ("16UC1; compressedDepth", "16UC1"):
        message = compressed_depth(DEPTH, "16UC1", "png")
        message.format = name
        assert np.nanmax(depth_from_compressed(message, ANY_SIZE)) == pytest.approx(DEPTH.max() * 0.001)


def test_long_runs_and_images_without_depth():
    empty = np.zeros((480, 640), np.uint16)
    assert np.isnan(depth_from_compressed(compressed_depth(empty, "16UC1", "rvl"), ANY_SIZE)).all()
    empty[479, 639] = 7
    assert depth_from_compressed(compressed_depth(empty, "16UC1", "rvl"), ANY_SIZE)[479, 639] == pytest.approx(0.007)


def test_compressed_depth_that_cannot_be_read_is_named():
    def refused(message, reason, most=ANY_SIZE):
        with pytest.raises(BadImageError) as error:
            depth_from_compressed(message, most)
        assert reason in str(error.value) and "\n" not in str(error.value)

    expected = "expected 16UC1 or 32FC1, compressedDepth png or rvl"
    refused(
        CompressedImage(format="16UC1; jpeg compressed "), f"unsupported compressed depth '16UC1; jpeg compressed ': {expected}"
    )
    refused(CompressedImage(format="mono8; compressedDepth png"), expected)
    refused(CompressedImage(format="16UC1; compressedDepth zstd"), expected)
    refused(CompressedImage(format="16UC1; compressedDepth png"), "expected a png image, got 0 bytes")
    refused(compressed_depth(DEPTH.astype(np.uint8), "16UC1", "png"), "expected a grey PNG of 16 bits, got one of mode L")
    for codec in ("png", "rvl"):
        refused(compressed_depth(DEPTH, "16UC1", codec), "image of 32x24 is too large: expected at most 700 pixels", 700)
        whole = compressed_depth(DEPTH, "16UC1", codec)
        for length in range(0, len(whole.data) - 8, 97):
            refused(CompressedImage(format=whole.format, data=whole.data[:length]), f"expected a {codec} image")
    liar = compressed_depth(DEPTH, "16UC1", "rvl")
    liar.data = array.array("B", bytes(liar.data[:12]) + struct.pack("<II", 32, 4) + bytes(liar.data[20:]))
    refused(liar, "RVL: expected runs of 128 pixels with all of their data, got other runs")
    noise = np.random.default_rng(0)
    for _ in range(200):
        data = struct.pack("<iffII", 0, 0.0, 0.0, 32, 24) + noise.integers(0, 256, 600, dtype=np.uint8).tobytes()
        try:
            depth_from_compressed(CompressedImage(format="16UC1; compressedDepth rvl", data=data), ANY_SIZE)
        except BadImageError as error:
            assert "expected a rvl image" in str(error)
