"""Text that somebody else wrote: prompts, thinking, verdicts, names, and what a broken file holds.

It is shown and never obeyed.  Whatever a reader would not see, or a terminal would act on, stands there as an escape:
control characters (a terminal's escape sequences begin with one), characters that turn the direction of what follows or
hide letters, halves of surrogate pairs, and line separators.  The two joiners stay, which Persian and many emoji need.
"""

import contextlib
import html
import os
import sys
import unicodedata
from typing import Any, TextIO

JOINERS = "\u200c\u200d"
_HIDDEN = ("Cc", "Cf", "Cs", "Zl", "Zp")


def visible(text: Any, keep: str = "") -> str:
    """The text with every hidden character as its escape, such as \\x1b; those in `keep` stay, usually "\\n"."""
    hidden = lambda c: unicodedata.category(c) in _HIDDEN and c not in JOINERS and c not in keep
    return "".join(c.encode("unicode_escape").decode() if hidden(c) else c for c in str(text))


def is_unicode(text: str) -> bool:
    """Whether a text holds no half of a surrogate pair, which is what Python makes of bytes that are no UTF-8."""
    return not any("\ud800" <= c <= "\udfff" for c in text)


def for_html(text: Any) -> str:
    """The text for an element or a quoted attribute of a page."""
    return html.escape(visible(text, keep="\n\t"))


def for_stream(text: Any, stream: TextIO, keep: str = "\n") -> str:
    """The text as a terminal, a pipe or a file shows it; what its encoding lacks is an escape, too."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return visible(text, keep).encode(encoding, "backslashreplace").decode(encoding)


def tell(text: Any, stream: TextIO | None = None, keep: str = "\n") -> None:
    """Prints the text, on standard output unless told; a stream that breaks falls silent, and breaks nothing."""
    stream = sys.stdout if stream is None else stream
    try:
        print(for_stream(text, stream, keep), file=stream, flush=True)
    except OSError:
        silence(stream)


def silence(stream: TextIO) -> None:
    """Lets what is written from here on go nowhere, and what stands in buffers, with which Python would fail at its end."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


def said(error: BaseException) -> str:
    """What an error says, "" where it cannot: a user's own error may be broken, too."""
    try:
        return str(error)
    except Exception:
        return ""


def quoted(value: Any, limit: int = 120) -> str:
    """A value of JSON inside a message: as Python writes it, shortened."""
    try:
        words = repr(value[: limit + 1] if isinstance(value, str) else value)
    except ValueError:  # a whole number of more digits than Python prints
        words = "a number of thousands of digits"
    except RecursionError:
        words = "a value that is nested too deeply"
    return f"{words[:limit]}..." if len(words) > limit else words
