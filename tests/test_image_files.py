"""Image files are read as people see them: orientation, colour profile, depth and transparency."""

import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageCms
from tiny_models import random_image

from flmm_core.images.files import as_seen, read_image, rgb_array

ORIENTATION = 0x0112


def saved(image, path, **options):
    image.save(path, **options)
    return path


def swapped_profile():
    """sRGB with the places of red and blue exchanged: what is stored as red is seen as blue."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    (count,) = struct.unpack_from(">I", data, 128)
    entries = {bytes(data[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, blue = entries[b"rXYZ"], entries[b"bXYZ"]
    data[red + 4 : red + 12], data[blue + 4 : blue + 12] = data[blue + 4 : blue + 12], data[red + 4 : red + 12]
    return bytes(data)


def png16(path, values):
    """A PNG of 16 bits, ``[H, W]`` or ``[H, W, 3]`` uint16."""
    assert cv2.imwrite(str(path), values if values.ndim == 2 else values[..., ::-1])
    return path


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["turned.png", "turned.jpg"])
def test_orientation(tmp_path, orientation, name):
    seen = np.asarray(random_image(24, 40))
    # How a camera stores what was seen, for each value of the EXIF tag.
    stored = {
        1: seen, 2: seen[:, ::-1], 3: seen[::-1, ::-1], 4: seen[::-1],
        5: seen.transpose(1, 0, 2), 6: np.rot90(seen, 1), 7: seen[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(seen, -1),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    path = saved(Image.fromarray(np.ascontiguousarray(stored)), tmp_path / name, exif=exif, quality=100, subsampling=0)
    found = read_image(path)
    assert found.shape == seen.shape == (24, 40, 3)
    assert np.abs(found.astype(int) - seen).max() <= (0 if name.endswith("png") else 12)
    with Image.open(path) as image:
        assert np.array_equal(rgb_array(image), found)


@pytest.mark.parametrize("name", ["photo.png", "photo.jpg", "photo.tif"])
def test_colour_profiles_are_converted(tmp_path, name):
    red = Image.new("RGB", (8, 8), (220, 30, 60))
    found = read_image(saved(red, tmp_path / name, icc_profile=swapped_profile()))
    assert np.abs(found[4, 4].astype(int) - (60, 30, 220)).max() <= 4
    same = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    found = read_image(saved(red, tmp_path / name, icc_profile=same))
    assert np.abs(found[4, 4].astype(int) - (220, 30, 60)).max() <= 3


def test_a_profile_of_a_palette_and_beside_transparency(tmp_path):
    flat = Image.new("RGB", (8, 8), (220, 30, 60))
    found = read_image(saved(flat.quantize(4), tmp_path / "p.png", icc_profile=swapped_profile()))
    assert np.abs(found[4, 4].astype(int) - (60, 30, 220)).max() <= 6
    clear = flat.convert("RGBA")
    clear.putpixel((0, 0), (220, 30, 60, 0))
    found = read_image(saved(clear, tmp_path / "a.png", icc_profile=swapped_profile()))
    assert found[0, 0].tolist() == [255, 255, 255] and np.abs(found[4, 4].astype(int) - (60, 30, 220)).max() <= 4


@pytest.mark.parametrize(("mode", "profile"), [("RGB", b"no profile"), ("L", None)])
def test_a_profile_that_does_not_fit_is_ignored_and_said(tmp_path, mode, profile, caplog):
    image = Image.new(mode, (8, 8), 77 if mode == "L" else (1, 77, 200))
    found = read_image(saved(image, tmp_path / "x.png", icc_profile=profile or swapped_profile()))
    assert found[0, 0].tolist() == ([77] * 3 if mode == "L" else [1, 77, 200])
    assert [record.levelname for record in caplog.records] == ["WARNING"] and "is ignored" in caplog.text


def reduced(values, bits=16):
    """As people see samples of so many bits."""
    return np.rint(values * (255 / (2**bits - 1))).astype(np.uint8)


def test_sixteen_bits(tmp_path):
    values = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    grey = read_image(png16(tmp_path / "grey.png", values))
    assert (grey == reduced(values)[..., None]).all()
    colours = np.stack([values, values[::-1], values.T], axis=-1)
    assert (read_image(png16(tmp_path / "rgb.png", colours)) == reduced(colours)).all()
    assert (read_image(png16(tmp_path / "rgb.tif", colours)) == reduced(colours)).all()
    assert (as_seen(Image.fromarray(values.astype(np.int32))) == grey).all()
    with pytest.raises(ValueError, match="image: expected values of 16 bits, got 0 to 65536"):
        as_seen(Image.fromarray(np.array([[0, 65536]], np.int32)))
    with pytest.raises(ValueError, match="expected 8 or 16 bits for each channel, got floating-point values"):
        rgb_array(Image.fromarray(np.zeros((2, 2), np.float32)))


@pytest.mark.parametrize("bits", [10, 12, 14])
def test_files_of_cameras_with_fewer_bits_are_as_bright_as_the_node_sees_them(tmp_path, bits):
    values = np.linspace(0, 2**bits - 1, 24 * 32).astype(np.uint16).reshape(24, 32)
    found = read_image(png16(tmp_path / "grey.png", values))
    assert (found == reduced(values, bits)[..., None]).all() and found.max() == 255
    colours = np.stack([values, values[::-1], values // 2], axis=-1)
    assert (read_image(png16(tmp_path / "rgb.png", colours)) == reduced(colours, bits)).all()


def test_colours_of_sixteen_bits_keep_their_profile_orientation_and_transparency(tmp_path):
    colours = np.zeros((8, 12, 4), np.uint16)
    colours[..., :3], colours[..., 3] = np.array([220, 30, 60]) * 257, 65535
    colours[:4, :, 3] = 0
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    content = cv2.imencode(".png", colours[..., [2, 1, 0, 3]])[1].tobytes()
    whole = with_chunks(content, {b"eXIf": exif.tobytes()[6:], b"iCCP": b"profile\0\0" + zlib.compress(swapped_profile())})
    (tmp_path / "whole.png").write_bytes(whole)
    found = read_image(tmp_path / "whole.png")
    assert found.shape == (12, 8, 3)
    assert (found[:, 4:] == 255).all(), "the upper half is transparent, and was turned to the right"
    assert np.abs(found[5, 2].astype(int) - (60, 30, 220)).max() <= 4


def with_chunks(png, chunks):
    """A PNG with more chunks behind its header."""
    head, packed = 8 + 25, b""
    for kind, data in chunks.items():
        packed += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return png[:head] + packed + png[head:]


def test_transparency_shows_white(tmp_path):
    rgba = np.array([[[200, 10, 30, 255], [200, 10, 30, 0], [0, 0, 0, 128]]], np.uint8)
    assert read_image(saved(Image.fromarray(rgba), tmp_path / "rgba.png")).tolist() == [
        [[200, 10, 30], [255, 255, 255], [127, 127, 127]]
    ]
    la = Image.merge("LA", [Image.fromarray(np.array([band], np.uint8)) for band in ([90, 90], [255, 0])])
    assert read_image(saved(la, tmp_path / "la.png")).tolist() == [[[90] * 3, [255] * 3]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putdata([0, 1])
    assert read_image(saved(palette, tmp_path / "p.png")).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert read_image(saved(palette, tmp_path / "pt.png", transparency=0)).tolist() == [[[255] * 3, [40, 50, 60]]]
    key = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    assert read_image(saved(key, tmp_path / "key.png", transparency=(1, 2, 3))).tolist() == [[[255] * 3, [4, 5, 6]]]


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "CMYK", "YCbCr"])
def test_other_modes(mode):
    image = random_image().convert(mode)
    assert np.array_equal(as_seen(image), np.asarray(image.convert("RGB")))


def test_images_without_anything_special_are_read_to_the_bit(tmp_path):
    pixels = np.asarray(random_image(24, 40))
    assert np.array_equal(read_image(saved(Image.fromarray(pixels), tmp_path / "plain.png")), pixels)


def test_files_that_are_no_images(tmp_path):
    with pytest.raises(ValueError, match=r"expected an image at .*none.png, got no such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ValueError, match="got no such file"):
        read_image(tmp_path)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match="got a file that is none of BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP"):
        read_image(tmp_path / "text.png")
    for name in ("cut.png", "cut.jpg"):
        path = saved(random_image(240, 400), tmp_path / name)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ValueError, match=rf"expected an image at .*{name}, got one that cannot be read \("):
            read_image(path)


def test_images_that_would_fill_the_memory(tmp_path):
    """A header of a few bytes that claims 10^10 pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(b"")))
    packed = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks]
    path = tmp_path / "bomb.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(packed))
    with pytest.raises(ValueError, match=r"bomb.png, got one that cannot be read \(Image size \(10000000000 pixels\)"):
        read_image(path)


def test_no_other_decoder_sees_a_file(tmp_path):
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(ValueError, match="got a file that is none of BMP"):
        read_image(tmp_path / "a.png")
    root = Path(__file__).parents[1]
    calls = [
        f"{path.relative_to(root)}: {line.strip()}"
        for path in sorted(root.glob("flmm_*/**/*.py"))
        for line in path.read_text().splitlines()
        if "Image.open(" in line
    ]
    assert len(calls) > 3 and [call for call in calls if "formats=" not in call] == []
