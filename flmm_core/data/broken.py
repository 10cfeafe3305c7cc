"""One rule for data that cannot be used: what goes wrong with one sample is that sample's, named, counted and skipped.

Checking, training and evaluation follow it. Damage of a whole file, or of the list of samples, is one line about the folder.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flmm_core.common.plain_text import one_line, printable
from flmm_core.errors import of_machine

_log = logging.getLogger(__name__)


class BrokenSampleError(ValueError):
    """A sample of a data set cannot be used; the message is one line of plain text that names its file and says why."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


@contextmanager
def sample_errors(name: str) -> Iterator[None]:
    """Translate whatever reading or using one sample raises, except what is the machine's: memory, disk, GPU.

    Args:
        name: of the sample, for the message.

    Raises:
        BrokenSampleError: in place of the exception.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, BrokenSampleError) or of_machine(error):
            raise
        _log.debug("%s cannot be used", name, exc_info=error)
        raise BrokenSampleError(f"{name}: cannot be used ({_reason(error)})") from error


@contextmanager
def file_errors(folder: Path) -> Iterator[None]:
    """Translate what a damaged list of samples raises.

    Raises:
        ValueError: one line that names the folder, in place of the exception; a ValueError passes.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError) as error:
        raise ValueError(f"{folder}: expected a data set, got one that cannot be read ({_reason(error)})") from error


def _reason(error: BaseException) -> str:
    if isinstance(error, KeyError) and error.args:
        return f"expected an entry {error.args[0]!r:.80}, got none"
    return one_line(error)
