"""Which files a recording has, and what a file is that is none of MCAP: in one line, with the command that converts it."""

from __future__ import annotations

import re
from pathlib import Path

MCAP = b"\x89MCAP0\r\n"
"""The bytes with which an MCAP file begins."""
ZSTD = b"\x28\xb5\x2f\xfd"
"""The bytes with which data begin that zstd compressed."""

_TO_MCAP = (
    "convert it: echo 'output_bags: [{uri: NEW, storage_id: mcap, all: true}]' > new.yaml; ros2 bag convert -i OLD -o new.yaml"
)
FROM_ROS_1 = "convert the ROS 1 bag: rosbags-convert --src OLD.bag --dst NEW --dst-storage mcap (PyPI: rosbags)"
"""How a bag of ROS 1 becomes a folder of ROS 2 messages."""
COMPRESSED_ONE_BY_ONE = f"messages that ros2 bag compressed one by one (compression mode message); {_TO_MCAP}"
"""What a bag is whose data begin with :data:`ZSTD`."""


class BagError(ValueError):
    """A bag that cannot be used; the message says why, on one line."""


def files_of(path: Path) -> list[Path]:
    """The MCAP files of a recording, in the order in which they were recorded.

    Args:
        path: a file, or a folder as ``ros2 bag record`` writes it.

    Raises:
        BagError: a folder without MCAP files, or with a compressed one.
    """
    if not path.is_dir():
        return [path]
    try:
        names = sorted(path.iterdir(), key=_natural)
    except OSError as error:
        raise BagError(f"{path}: cannot be read ({error.strerror})") from error
    files = [name for name in names if name.suffix == ".mcap"]
    packed = [name for name in names if name.suffixes[-2:] in ([".mcap", ".zstd"], [".mcap", ".zst"])]
    others = [name for name in packed if name.with_suffix("") not in files]
    others += [] if files else [name for name in names if name.is_file() and name.suffix in (".db3", ".bag", ".zstd", ".zst")]
    if others:
        raise BagError(f"{path}: expected MCAP files, got {what_is(others[0])}")
    if not files:
        raise BagError(f"{path}: expected a folder with .mcap files, got none in it")
    return files


def what_is(path: Path) -> str:
    """What a path is that is no MCAP file, and how to convert it."""
    if path.is_dir():
        return "a folder"
    if not path.is_file():
        return "no regular file"
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        return "an empty file"
    if head.startswith(b"SQLite format 3"):
        return f"a database of ros2 bag (db3), {path.name}; {_TO_MCAP}"
    if head.startswith(b"#ROSBAG"):
        return f"a bag of ROS 1, {path.name}; {FROM_ROS_1}"
    if head.startswith(ZSTD):
        return f"a file that zstd compressed; decompress it: zstd -d {path.name} -o {path.with_suffix('').name}"
    if head.startswith(b"rosbag2_bagfile_information"):
        return "the description of a recording; give its folder"
    return f"a file that begins with {head[:8]!r}"


def _natural(path: Path) -> list[tuple[int, str]]:
    """Order of names in which _10 comes after _9."""
    return [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"(\d+)", path.name)]
