"""Options that count something: each is at least 1."""

from __future__ import annotations

import argparse


def require_counts(args: argparse.Namespace, *names: str) -> None:
    """Refuse counts below 1; one that was not given, None, is fine.

    Args:
        args: the parsed options.
        names: of its attributes.

    Raises:
        ValueError: names the option.
    """
    for name in names:
        value = getattr(args, name)
        if value is not None and value < 1:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least 1, got {value}")
