"""What a lint may complain of, before it is known how long it has been so."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import attrs


@attrs.frozen(kw_only=True)
class Case:
    """Something that is wrong if it stays so for longer than its bound.

    Attributes:
      key: as long as it is the same, it is the same case.
      say: the message of the finding, given the seconds since which it is so.
      began: when it began, by the Trio clock; None if nobody knows, so that it counts from
        when it is first seen.
      server: as of `Finding`.
      request: as of `Finding`.
      task: as of `Finding`.
    """

    key: Hashable
    say: Callable[[float], str]
    began: float | None = None
    server: int | None = None
    request: int | None = None
    task: int | None = None
