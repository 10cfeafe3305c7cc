"""The user's cache: what was computed once and can be computed again."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache(kind: str) -> Path:
    """The folder of one kind of cached files, by the XDG base directory specification; it may not exist yet."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return base / "flmm_ros" / kind
