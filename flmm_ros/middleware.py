"""Settings of the middleware that must be made before rclpy starts."""

from __future__ import annotations

import os
from pathlib import Path

LARGE_IMAGES = Path(__file__).with_name("fastdds.xml")
"""Settings of Fast DDS with shared memory for camera images; the reason is in the file."""
PROFILES_VARIABLE = "FASTDDS_DEFAULT_PROFILES_FILE"
"""Environment variable that names the settings file of Fast DDS."""


def make_room_for_images() -> None:
    """Let this process and its children send large images over Fast DDS, unless the user has chosen other settings.

    Must be called before :func:`rclpy.init`.
    """
    os.environ.setdefault(PROFILES_VARIABLE, str(LARGE_IMAGES))
