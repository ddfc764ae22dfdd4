"""The kinds of faults that a network can have, as values.

What they do is in `relay` for streams, in `lossy` for datagrams; `faults` has the set of
those that there are at a moment.
"""

from __future__ import annotations

import errno as numbers
import math
import os
from collections.abc import Callable
from typing import Any, Literal, TypeAlias, get_args

import attrs

Towards: TypeAlias = Literal["server", "client"]
"""Which way bytes or datagrams go."""


def _number(least: float, *, unit: str, finite: bool = False) -> Callable[..., None]:
    """A validator: a number of at least ``least``."""

    def check(fault: object, field: attrs.Attribute[Any], value: object) -> None:
        name = f"{type(fault).__name__}.{field.name}"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise TypeError(f"{name} must be a number {unit}, not {value!r}")
        if not value >= least or (finite and value == math.inf):
            raise ValueError(f"{name} must be a number {unit} of at least {least:g}, not {value!r}")

    return check


def _whole(least: int, *, unit: str) -> Callable[..., None]:
    """A validator: a whole number of at least ``least``."""

    def check(fault: object, field: attrs.Attribute[Any], value: object) -> None:
        name = f"{type(fault).__name__}.{field.name}"
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name} must be a whole number {unit}, not {value!r}")
        if value < least:
            raise ValueError(f"{name} must be at least {least} {unit}, not {value!r}")

    return check


def _share(fault: object, field: attrs.Attribute[Any], value: object) -> None:
    """A validator: a share of one."""
    name = f"{type(fault).__name__}.{field.name}"
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number from 0 to 1, not {value!r}")
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be from 0 to 1, not {value!r}")


@attrs.frozen
class _Directed:
    """A fault of one way, or of both."""

    towards: Towards | None = attrs.field(default=None, kw_only=True)

    @towards.validator
    def _check_towards(self, field: attrs.Attribute[Any], value: object) -> None:
        if value not in {"server", "client", None}:
            name = f"{type(self).__name__}.{field.name}"
            expected = "'server', 'client' or None (both ways)"
            raise ValueError(f"{name} must be {expected}, not {value!r}")


@attrs.frozen
class Latency(_Directed):
    """Everything arrives later.

    Args:
      seconds: how much later.
      jitter: up to so many seconds more or less, by chance; on a stream nothing
        overtakes anything.
      towards: ``"server"`` or ``"client"``; None is both ways.
    """

    seconds: float = attrs.field(validator=_number(0, unit="of seconds", finite=True))
    jitter: float = attrs.field(default=0.0, validator=_number(0, unit="of seconds", finite=True))

    def late(self, chance: float) -> float:
        """How much later, in seconds, by a number from 0 to 1."""
        return max(0.0, self.seconds + (2 * chance - 1) * self.jitter)


@attrs.frozen
class Bandwidth(_Directed):
    """Bytes arrive at a limited rate.

    Args:
      rate: bytes a second; ``inf``: any number.
      towards: ``"server"`` or ``"client"``; None is each way by itself.
    """

    rate: float = attrs.field(validator=_number(1e-9, unit="of bytes a second"))


@attrs.frozen
class Slice(_Directed):
    """Bytes arrive in small pieces: parsers meet their input cut at every place.

    In memory the next piece comes when the one before it was received. To a client
    on a real socket each is a send of its own, which the system may put together
    again; give a delay to be sure.

    Args:
      size: bytes of a piece.
      delay: seconds between two pieces.
      towards: ``"server"`` or ``"client"``; None is both ways.
    """

    size: int = attrs.field(default=1, validator=_whole(1, unit="bytes"))
    delay: float = attrs.field(default=0.0, validator=_number(0, unit="of seconds", finite=True))


@attrs.frozen
class LimitData(_Directed):
    """The connection is closed, in order, when so many bytes have passed one way.

    Args:
      size: bytes, from its beginning.
      towards: which way they are counted; None is each way by itself.
    """

    size: int = attrs.field(validator=_whole(0, unit="bytes"))


@attrs.frozen
class Stall(_Directed):
    """Nothing arrives any more; what was sent arrives once this is removed.

    Args:
      seconds: after these, from the first byte that is held up, the connection is
        closed; ``inf``: never.
      towards: ``"server"`` or ``"client"``; None is both ways.
    """

    seconds: float = attrs.field(default=math.inf, validator=_number(0, unit="of seconds"))


@attrs.frozen
class SlowClose(_Directed):
    """The end of what one side says arrives later.

    Args:
      seconds: how much later.
      towards: ``"server"`` or ``"client"``; None is both ways.
    """

    seconds: float = attrs.field(validator=_number(0, unit="of seconds", finite=True))


@attrs.frozen
class Reset(_Directed):
    """The connection is reset, for both sides: what they have not received is lost.

    Args:
      after: when so many bytes have passed one way, from its beginning; 0 resets
        every connection there is at once.
      towards: which way they are counted; None is each way by itself.
    """

    after: int = attrs.field(default=0, validator=_whole(0, unit="bytes"))


@attrs.frozen
class Refuse:
    """Nobody can connect. On a real socket who does is reset at once."""


@attrs.frozen
class AcceptError:
    """Accepting meets an error of the system's, with a client waiting.

    Args:
      errno: which; of `errno`, ``EMFILE`` say.
      times: how often, before accepting works again.
    """

    errno: int = attrs.field(default=numbers.EMFILE, validator=_whole(1, unit="(of errno)"))
    times: int = attrs.field(default=1, validator=_whole(1, unit="times"))

    def error(self) -> OSError:
        """Make the error that the accept raises."""
        return OSError(self.errno, os.strerror(self.errno))


@attrs.frozen
class Loss(_Directed):
    """Datagrams get lost.

    Args:
      share: of them, by chance; 1 is all.
      towards: ``"server"`` or ``"client"``; None is both ways.
    """

    share: float = attrs.field(default=1.0, validator=_share)


@attrs.frozen
class Duplicate(_Directed):
    """Datagrams arrive twice.

    Args:
      share: of them, by chance; 1 is all.
      towards: ``"server"`` or ``"client"``; None is both ways.
    """

    share: float = attrs.field(default=1.0, validator=_share)


@attrs.frozen
class Reorder(_Directed):
    """Datagrams are overtaken by those that are sent after them.

    Args:
      share: of them, by chance; 1 is all.
      seconds: how much later those arrive.
      towards: ``"server"`` or ``"client"``; None is both ways.
    """

    share: float = attrs.field(default=0.5, validator=_share)
    seconds: float = attrs.field(default=0.1, validator=_number(0, unit="of seconds", finite=True))


Fault: TypeAlias = (
    Latency
    | Bandwidth
    | Slice
    | LimitData
    | Stall
    | SlowClose
    | Reset
    | Refuse
    | AcceptError
    | Loss
    | Duplicate
    | Reorder
)
FAULTS: tuple[type, ...] = get_args(Fault)
