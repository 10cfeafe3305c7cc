"""Words of a model, a user or an error as plain text, for terminals, logs and drawings."""


def printable(text: str) -> str:
    """On one line and without control characters: they would steer a terminal, and fonts cannot draw them."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks, 500 characters at most, fit to be sent; its type if it has none."""
    text = str(error).encode("utf-8", "replace").decode("utf-8")  # names of files may hold what is no text
    return " ".join(text.split())[:500] or type(error).__name__
