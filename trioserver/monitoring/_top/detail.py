"""One request in detail: what a monitor tells of it, and where its tasks wait, as lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .._text.words import printable

_MOST_LINES = 1000


def lines_of_request(message: Mapping[str, Any]) -> Sequence[str]:
    """The lines; what holds no value is left out.

    Args:
      message: the monitor's answer. It may come from anywhere, so nothing in it is trusted.
    """
    lines = list(_lines(message))
    if len(lines) <= _MOST_LINES:
        return lines
    return [*lines[:_MOST_LINES], f"and {len(lines) - _MOST_LINES} more lines"]


def _lines(message: Mapping[str, Any]) -> Iterator[str]:
    request = message.get("request")
    if not isinstance(request, dict):
        yield "It has ended."
        return
    for name, value in request.items():
        if value is not None:
            told = f"{value:.3f}" if isinstance(value, float) else str(value)
            yield f"{printable(str(name), 40).replace('_', ' '):>16}  {printable(told)}"
    yield ""
    text = message.get("text")
    if isinstance(text, str) and text:
        yield from (printable(line) for line in text.splitlines())
    else:
        yield "Where it waits is not known: it is served in another process."
