"""The user's cache of exported networks and built engines."""

from __future__ import annotations

import os
from pathlib import Path


def engine_cache() -> Path:
    """The folder, by the XDG base directory specification; it may not exist yet."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "flmm_ros" / "engines"
