"""The steps of a script: values, which say what they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import attrs

_SHOWN = 200
"""Bytes of an input, or of a step, that a message has in it."""


@attrs.frozen(repr=False)
class Step:
    """A step of a script: what `expect`, `expect_eof`, `reply`, `pause` and `eof` give."""

    kind: Literal["expect", "expect_eof", "reply", "pause", "eof"]
    argument: Any = None

    def __repr__(self) -> str:
        """As a call."""
        return f"{self.kind}({'' if self.argument is None else repr(self.argument)})"

    def __str__(self) -> str:
        """The same, but not at any length."""
        shortened = isinstance(self.argument, bytes) and len(self.argument) > _SHOWN
        return f"{self.kind}({excerpt(self.argument)})" if shortened else repr(self)

    @property
    def is_the_clients(self) -> bool:
        return self.kind in {"expect", "expect_eof"}


def expect(pattern: bytes) -> Step:
    r"""The client has to say this next.

    Args:
      pattern: the very bytes; but ``*`` is any bytes of one line (all but a line feed; as
        few as fit), and ``[*]`` is a star. ``b"MAIL FROM:<*>\r\n"``.

    Raises:
      ValueError: it is empty, or ends in ``*``, so that nothing says where it ends.
    """
    if not _some_bytes(pattern, "expect() takes a pattern").endswith(b"*"):
        return Step("expect", pattern)
    raise ValueError(
        f"expect() takes a pattern that does not end in *, not {pattern!r}: nothing says where"
        ' that ends; give what comes next (b"\\n", say), or [*] for a star'
    )


def expect_eof() -> Step:
    """The client has to end its side next; it may not say anything more."""
    return Step("expect_eof")


def reply(data: bytes) -> Step:
    """The server sends this. A client that is gone by then is no error."""
    return Step("reply", _some_bytes(data, "reply() takes what to send"))


def pause(seconds: float) -> Step:
    """The server does nothing for so many seconds, by the Trio clock; ``inf``: for ever."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise TypeError(f"pause() takes a number of seconds, not {seconds!r}")
    if not seconds >= 0:
        raise ValueError(f"pause() takes a number of seconds of at least 0, not {seconds!r}")
    return Step("pause", seconds)


def eof() -> Step:
    """The server ends its output; the script can go on expecting."""
    return Step("eof")


def _some_bytes(data: object, what: str) -> bytes:
    if not isinstance(data, bytes):
        raise TypeError(f"{what}, in bytes, not {data!r}")
    if not data:
        raise ValueError(f"{what}, of at least one byte, not b''")
    return data


def excerpt(data: bytes | bytearray) -> str:
    more = f" and {len(data) - _SHOWN} more bytes" if len(data) > _SHOWN else ""
    return f"{bytes(data[:_SHOWN])!r}{more}"


def check_steps(steps: Sequence[object]) -> None:
    """Refuse a script that nobody can follow."""
    if not steps:
        raise ValueError("a script has at least one step: expect(...), say")
    before: list[Step] = []
    for number, step in enumerate(steps, 1):
        if not isinstance(step, Step):
            made = "expect(), expect_eof(), reply(), pause() or eof()"
            raise TypeError(f"step {number} must be what {made} gives, not {step!r}")
        if step.kind == "reply" and eof() in before:
            raise ValueError(f"step {number}, {step}, comes after eof(): the output has ended")
        if step.kind == "expect" and expect_eof() in before:
            raise ValueError(f"step {number}, {step}, comes after expect_eof(): nothing can come")
        before.append(step)
