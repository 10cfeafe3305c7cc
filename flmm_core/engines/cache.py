"""The user's cache of exported networks and built engines."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from flmm_core.common.user_cache import user_cache


def engine_cache() -> Path:
    """The folder; it may not exist yet."""
    return user_cache("engines")


@contextmanager
def cache_lock() -> Iterator[None]:
    """Let one process at a time export into the cache, which is made if need be; the lock ends with its process.

    Raises:
        OSError: the folder cannot be made or opened.
    """
    engine_cache().mkdir(parents=True, exist_ok=True)
    folder = os.open(engine_cache(), os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: several processes may export, and the last one's stays
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)
