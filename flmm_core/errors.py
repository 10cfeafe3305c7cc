"""Errors that the core's callers tell apart."""

from __future__ import annotations


class CommandError(ValueError):
    """The words of a command cannot be used; the model and the picture are not to blame."""
