"""Settings of the middleware that must be made before rclpy starts."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

LARGE_IMAGES = Path(__file__).with_name("fastdds.xml")
"""Settings of Fast DDS with shared memory for camera images; the reason is in the file."""
PROFILES_VARIABLE = "FASTDDS_DEFAULT_PROFILES_FILE"
"""Environment variable that names the settings file of Fast DDS."""


_SHARED_MEMORY = Path("/dev/shm")
_NEEDED = 72 * 10**6
"""Bytes of shared memory that a process with these settings takes."""


def make_room_for_images() -> None:
    """Let this process and its children send large images over Fast DDS, unless the user has chosen other settings.

    Where the machine has less shared memory than that takes, as many containers, a line on stderr says so and the default
    settings stay: they need less. Must be called before :func:`rclpy.init`.
    """
    if PROFILES_VARIABLE in os.environ:
        return
    free = shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else _NEEDED
    if free < _NEEDED:
        got = f"expected {_NEEDED // 10**6} MB free, got {free // 10**6} MB"
        print(
            f"{_SHARED_MEMORY}: {got}: large images may be lost; enlarge it (docker run --shm-size=1g), or remove what killed"
            " processes left there (fastdds shm clean)",
            file=sys.stderr,
        )
        return
    os.environ[PROFILES_VARIABLE] = str(LARGE_IMAGES)
