"""Forwards the log of the library to the log of the node while a model loads."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from flmm_core.common.plain_text import in_utf8, printable


class _ToNode(logging.Handler):
    def __init__(self, logger: Any, on_line: Callable[[str], None]) -> None:
        super().__init__(logging.INFO)
        self._logger = logger
        self._on_line = on_line

    def emit(self, record: logging.LogRecord) -> None:
        line = printable(in_utf8(record.getMessage()))
        self._on_line(line)
        if record.levelno >= logging.WARNING:  # rclpy allows one severity for each line of code
            self._logger.warning(line)
        else:
            self._logger.info(line)


@contextmanager
def core_log(logger: Any, on_line: Callable[[str], None]) -> Iterator[None]:
    """Forward what the library logs inside the block to a node's logger, from level INFO.

    Args:
        logger: of a node.
        on_line: also called with each line.
    """
    core, handler = logging.getLogger("flmm_core"), _ToNode(logger, on_line)
    level = core.level
    core.addHandler(handler)
    core.setLevel(logging.INFO)
    try:
        yield
    finally:
        core.removeHandler(handler)
        core.setLevel(level)
