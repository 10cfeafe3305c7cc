"""Words of a model or a user as plain text, for terminals and drawings."""


def printable(text: str) -> str:
    """On one line and without control characters: they would steer a terminal, and fonts cannot draw them."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())
