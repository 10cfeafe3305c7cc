"""What the library logs while it loads, in the node's own log."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class _ToNode(logging.Handler):
    def __init__(self, logger: Any) -> None:
        super().__init__(logging.INFO)
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:  # rclpy allows one severity for each line of code
            self._logger.warning(record.getMessage())
        else:
            self._logger.info(record.getMessage())


@contextmanager
def core_log(logger: Any) -> Iterator[None]:
    """Pass what the library logs inside the block on to a node's logger, from INFO on.

    Args:
        logger: of a node.
    """
    core, handler = logging.getLogger("flmm_core"), _ToNode(logger)
    level = core.level
    core.addHandler(handler)
    core.setLevel(logging.INFO)
    try:
        yield
    finally:
        core.removeHandler(handler)
        core.setLevel(level)
