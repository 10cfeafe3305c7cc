"""What the library logs while it loads, in the node's own log."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class _ToNode(logging.Handler):
    def __init__(self, logger: Any, said: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._logger = logger
        self._said = said

    def emit(self, record: logging.LogRecord) -> None:
        self._said(record.getMessage())
        if record.levelno >= logging.WARNING:  # rclpy allows one severity for each line of code
            self._logger.warning(record.getMessage())
        else:
            self._logger.info(record.getMessage())


@contextmanager
def core_log(logger: Any, said: Callable[[str], None]) -> Iterator[None]:
    """Pass what the library logs inside the block on to a node's logger, from INFO on.

    Args:
        logger: of a node.
        said: is told each line, too.
    """
    core, handler = logging.getLogger("flmm_core"), _ToNode(logger, said)
    level = core.level
    core.addHandler(handler)
    core.setLevel(logging.INFO)
    try:
        yield
    finally:
        core.removeHandler(handler)
        core.setLevel(level)
