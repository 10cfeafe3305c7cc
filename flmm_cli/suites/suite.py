"""An entry of the table of suites, and what a suite reports."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flmm_cli.shared.outputs import add_output

if TYPE_CHECKING:
    from flmm_core.config import GroundingConfig

FIGURE_HEADERS = ("figure", "value", "95 % interval", "cases")


@dataclass(frozen=True)
class Report:
    """What a suite measured, ready to be printed and written."""

    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    """Cells of the table that is printed, one for each header."""
    summary: str
    """Lines below the table; may be empty."""
    record: dict[str, Any]
    """What ``--json`` writes in addition to the provenance."""
    markdown: str = ""
    """What ``--markdown`` writes."""
    page: Callable[[], str] | None = None
    """Builds the HTML that ``--html`` writes."""


class Skipped:
    """Prints a line for each sample that is skipped, and keeps them."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        """Print a line above the progress bar."""
        from tqdm import tqdm

        self.lines.append(line)
        tqdm.write(line)


@dataclass(frozen=True)
class Suite:
    """One suite of `flmm eval`."""

    name: str
    help: str
    description: str
    add_options: Callable[[argparse.ArgumentParser], None]
    """Adds the options of the suite, without those of the model."""
    measure: Callable[[argparse.Namespace, GroundingConfig, Any], Report]
    """Measures what ``open_data`` returned."""
    open_data: Callable[[argparse.Namespace], Any] = lambda args: None
    """Opens the suite's data, before any model is loaded."""
    counts: tuple[str, ...] = ()
    """Options that must be at least 1."""


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of a suite that runs on a published data set."""
    parser.add_argument("data", metavar="DATA", help="FOLDER, FORMAT=FOLDER, or either with @SPLIT")
    parser.add_argument("--limit", type=int, help="use at most this many images, spread over the data set (default: all)")
    add_output(parser, "--json", help="write figures, command, model and versions to this file")
    add_output(parser, "--markdown", help="write the table to this file, with published figures beside")


def open_published(args: argparse.Namespace) -> Any:
    """The data set that ``DATA`` names.

    Raises:
        DataError: there is none, or it is damaged.
    """
    from flmm_core.data.formats import open_dataset

    return open_dataset(args.data)
