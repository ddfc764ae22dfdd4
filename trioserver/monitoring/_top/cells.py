"""How much of a line of the terminal a text takes, and texts that take exactly so much."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator


def width_of(text: str) -> int:
    """The columns that a text takes; it holds no control characters."""
    if text.isascii():
        return len(text)
    return sum(map(_width, text))


def _width(char: str) -> int:
    if unicodedata.combining(char) or unicodedata.category(char) in {"Mn", "Me"}:
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def cut(text: str, width: int) -> str:
    """As much of a text as fits; where something is missing, it ends with ``~``."""
    if width_of(text) <= width:
        return text
    if width <= 0:
        return ""
    if text.isascii():
        return f"{text[: width - 1]}~"
    kept, taken = [], 0
    for char in text:
        taken += _width(char)
        if taken > width - 1:
            break
        kept.append(char)
    return f"{''.join(kept)}~"


def wrapped(text: str, width: int) -> Iterator[str]:
    """A text in lines, broken at blanks so that they fit; a word that is longer stands alone."""
    line, *words = text.split(" ")
    for word in words:
        longer = f"{line} {word}"
        if width_of(longer) <= width:
            line = longer
        else:
            yield line
            line = f"  {word}"
    yield line


def left(text: str, width: int) -> str:
    """A text at the left of so many columns."""
    text = cut(text, width)
    return text + " " * (width - width_of(text))


def right(text: str, width: int) -> str:
    """A text at the right of so many columns."""
    text = cut(text, width)
    return " " * (width - width_of(text)) + text
