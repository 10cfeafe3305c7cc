"""Arguments of the launch files: how their text is read. Independent of launch."""

from __future__ import annotations

import re


def switch(name: str, text: str) -> bool | None:
    """A switch: ``true`` or ``false`` in any case, ``1`` or ``0``; None if it was not given.

    Raises:
        ValueError: any other text.
    """
    if not text:
        return None
    known = {"true": True, "1": True, "false": False, "0": False}
    try:
        return known[text.strip().lower()]
    except KeyError:
        raise ValueError(f"{name}: expected true or false, got {text!r}") from None


def log_level(text: str) -> str:
    """A level of logs, in any case; empty if it was not given.

    Raises:
        ValueError: any other text.
    """
    if text and text.lower() not in ("debug", "info", "warn", "error", "fatal"):
        raise ValueError(f"log_level: expected debug, info, warn, error or fatal, got {text!r}")
    return text


def full_namespace(pushed: str, given: str) -> str:
    """The namespace of a node.

    Args:
        pushed: what launch files pushed for all nodes (``PushRosNamespace``); may be empty.
        given: the argument ``namespace``, below ``pushed`` unless it is a part of it: a parent that pushes its own argument
            ``namespace`` passes it on too.

    Returns:
        Absolute, ``/`` for none.

    Raises:
        ValueError: ``given`` is no namespace of ROS.
    """
    if given.strip("/") and not re.fullmatch(r"/?[A-Za-z_]\w*(/[A-Za-z_]\w*)*/?", given, re.ASCII):
        raise ValueError(f"namespace: expected names of letters, digits and _ between slashes, got {given!r}")
    outer, inner = pushed.strip("/"), given.strip("/")
    parts = [outer] if f"/{inner}/" in f"/{outer}/" else [outer, inner]
    return "/" + "/".join(part for part in parts if part)
