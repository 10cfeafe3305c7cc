"""What the middleware is to be told before rclpy starts."""

from __future__ import annotations

import os
from pathlib import Path

LARGE_IMAGES = Path(__file__).with_name("fastdds.xml")
"""Settings of Fast DDS with shared memory for the images of a camera; says why."""
PROFILES_VARIABLE = "FASTDDS_DEFAULT_PROFILES_FILE"
"""Environment variable in which Fast DDS looks for a file of settings."""


def make_room_for_images() -> None:
    """Let this process and its children send large images over Fast DDS, unless the user has settings of their own.

    Takes effect where it is called before :func:`rclpy.init`.
    """
    os.environ.setdefault(PROFILES_VARIABLE, str(LARGE_IMAGES))
