"""Messages to arrays and back, without a graph; tests/ros/test_bad_input.py sends every encoding to a real node."""

import array

import numpy as np
import pytest

pytest.importorskip("rclpy", reason="rclpy is not installed")
pytest.importorskip("flmm_ros.msg", reason="the messages of flmm_ros are not built")

from sensor_msgs.msg import Image
from std_msgs.msg import Header

from flmm_ros.conversions import image_from_message, image_message

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
