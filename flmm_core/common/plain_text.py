"""Text of a model, a user or an error as plain text, for terminals, logs and drawings."""


def printable(text: str) -> str:
    """The text on one line, without control characters, which terminals would execute and fonts cannot draw."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def one_line(error: BaseException) -> str:
    """The message of an error as plain text, 500 characters at most; the name of its type if it has no message."""
    return printable(in_utf8(str(error)))[:500] or type(error).__name__


def in_utf8(text: str) -> str:
    """The text as valid UTF-8: bytes of another encoding, which file names and arguments may hold, become escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def is_utf8(text: str) -> bool:
    """Whether a text is free of lone surrogates, which stand for bytes of another encoding or for half a character."""
    return not any("\ud800" <= sign <= "\udfff" for sign in text)
