"""Patterns of bytes: where one ends in an input, or that it never will, whatever comes.

A star is any bytes of one line, and ``[*]`` a star itself. What is found depends on the
bytes alone: asked again with more of them, it is the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence


class Mismatch(Exception):
    """Whatever comes, the pattern does not match."""


def literals_of(pattern: bytes) -> list[bytes]:
    """What is before, between and after the stars of a pattern."""
    literals = [bytearray()]
    for part in re.split(rb"(\[\*\]|\*)", pattern):
        if part == b"*":
            literals.append(bytearray())
        else:
            literals[-1] += b"*" if part == b"[*]" else part
    return [bytes(literal) for literal in literals]


def end_of_match(literals: Sequence[bytes], data: bytearray) -> int | None:
    """Where the shortest match ends, from the beginning of ``data``; None: not in there yet.

    The first place of each literal is the right one. Any other would be further on in
    the same line, and what fits after that one fits after the first, too.

    Raises:
      Mismatch: nor can it come.
    """
    first, *others = literals
    if data[: len(first)] != first[: len(data)]:
        raise Mismatch
    if len(data) < len(first):
        return None
    end = len(first)
    for literal in others:
        line_feed = data.find(b"\n", end)
        last = line_feed if line_feed >= 0 else len(data)  # the star does not go beyond it
        at = data.find(literal, end, last + len(literal))
        if at < 0:
            _check_for_beginning(literal, data, max(end, len(data) - len(literal) + 1), last)
            return None
        end = at + len(literal)
    return end


def _check_for_beginning(literal: bytes, data: bytearray, first: int, last: int) -> None:
    """Raise `Mismatch` unless ``data`` ends in a beginning of ``literal``, be it an empty one."""
    if not any(literal.startswith(bytes(data[at:])) for at in range(first, last + 1)):
        raise Mismatch
