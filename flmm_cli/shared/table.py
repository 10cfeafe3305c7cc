"""Plain text tables with wrapped cells."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from flmm_core.common.plain_text import printable


def format_table(headers: Sequence[str], rows: Sequence[Sequence[str]], *, width: int, least: int = 12) -> str:
    """A table that is at most ``width`` characters wide unless ``least`` prevents it.

    Args:
        headers: one for each column.
        rows: cells; their line breaks are kept, other control characters are not.
        width: of the table, characters.
        least: width below which no column is narrowed.
    """
    headers, *rows = ([_plain(cell) for cell in row] for row in (headers, *rows))
    lines = [[max(map(len, cell.splitlines()), default=0) for cell in row] for row in (headers, *rows)]
    widths = [max(column) for column in zip(*lines, strict=True)]
    while sum(widths) + 2 * (len(widths) - 1) > width and max(widths) > least:
        widths[widths.index(max(widths))] -= 1
    numeric = [all(_is_number(row[i]) for row in rows) and bool(rows) for i in range(len(headers))]
    rule = "  ".join("-" * w for w in widths)
    table = [_format_row(headers, widths, numeric), rule]
    tall = any(len(_wrapped(cell, w)) > 1 for row in rows for cell, w in zip(row, widths, strict=True))
    for number, row in enumerate(rows):
        if tall and number:
            table.append("")
        table.append(_format_row(row, widths, numeric))
    return "\n".join(table)


def _format_row(row: Sequence[str], widths: Sequence[int], numeric: Sequence[bool]) -> str:
    cells = [_wrapped(cell, width) for cell, width in zip(row, widths, strict=True)]
    lines = []
    for at in range(max(map(len, cells))):
        parts = [cell[at] if at < len(cell) else "" for cell in cells]
        padded = [p.rjust(w) if n else p.ljust(w) for p, w, n in zip(parts, widths, numeric, strict=True)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _wrapped(cell: str, width: int) -> list[str]:
    return [piece for line in cell.splitlines() or [""] for piece in (textwrap.wrap(line, max(width, 1)) or [""])]


def _plain(cell: str) -> str:
    return "\n".join(map(printable, cell.splitlines()))


def _is_number(cell: str) -> bool:
    try:
        float(cell or "0")
    except ValueError:
        return False
    return True
