"""Text of a model, a user or an error as plain text, for terminals, logs and drawings."""


def printable(text: str) -> str:
    """The text on one line, without control characters, which terminals would execute and fonts cannot draw."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def one_line(error: BaseException) -> str:
    """The message of an error on one line, 500 characters at most, valid UTF-8; the name of its type if it has no message."""
    text = str(error).encode("utf-8", "replace").decode("utf-8")  # file names may contain lone surrogates
    return " ".join(text.split())[:500] or type(error).__name__
