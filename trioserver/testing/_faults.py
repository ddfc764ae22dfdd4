"""What can be wrong with a network, as values, and the set of those that are at the moment.

What they do is in `_relay` for streams, in `_lossy` for datagrams.
"""

from __future__ import annotations

import errno as numbers
import math
import os
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias, TypeVar, get_args

import attrs
from trio.lowlevel import ParkingLot

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
        """The error."""
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
_FAULTS = get_args(Fault)

Kind: TypeAlias = Literal["streams", "datagrams"]
"""What a network carries."""

_CANNOT_APPLY: dict[Kind, tuple[type, ...]] = {
    "streams": (Loss, Duplicate, Reorder),
    "datagrams": (Bandwidth, Slice, LimitData, Stall, SlowClose, Reset, Refuse),
}

F = TypeVar("F", bound=Fault)


class Faults:
    """The faults that a network has now; they can change while it is used.

    Args:
      faults: those to begin with.
      seed: of all that is left to chance. Each connection draws numbers of its own, so
        that what one of them does changes nothing for another.
    """

    def __init__(self, *faults: Fault, seed: int = 0) -> None:
        self._faults: list[Fault] = []
        self._seed = seed
        self._errors_met = 0
        self._networks: list[Kind] = []
        self._changed = ParkingLot()
        self._heeded_by: list[Callable[[], None]] = []
        self.add(*faults)

    def __repr__(self) -> str:
        return f"<trioserver.testing.Faults: {', '.join(map(repr, self._faults)) or 'none'}>"

    def __iter__(self) -> Iterator[Fault]:
        return iter(list(self._faults))

    def __len__(self) -> int:
        return len(self._faults)

    def add(self, *faults: Fault) -> None:
        """From now on, there are these, too; for what is on its way already, as well.

        Raises:
          TypeError: one of them is no fault; or one of streams, and the server has
            datagrams, or the other way round, so that it would do nothing.
        """
        for fault in faults:
            if not isinstance(fault, _FAULTS):
                known = ", ".join(kind.__name__ for kind in _FAULTS)
                raise TypeError(f"a fault is one of {known}, not {fault!r}")
        self._refuse_unfit(faults)
        self._faults += faults
        self._changed.unpark_all()
        for heed in list(self._heeded_by):
            heed()

    @contextmanager
    def carrying(self, kind: Kind) -> Iterator[None]:
        """In the block, they are those of a network that carries this, and have to apply to it.

        Raises:
          TypeError: one of them cannot.
        """
        self._networks.append(kind)
        try:
            self._refuse_unfit(self._faults)
            yield
        finally:
            self._networks.remove(kind)

    def _refuse_unfit(self, faults: Iterable[Fault]) -> None:
        """Refuse what would do nothing on any of the networks that have these faults.

        A share of nothing does nothing anywhere.
        """
        for fault in faults:
            if not self._networks or getattr(fault, "share", 1) == 0:
                continue
            if all(isinstance(fault, _CANNOT_APPLY[kind]) for kind in self._networks):
                here = self._networks[-1]
                other = "streams" if here == "datagrams" else "datagrams"
                raise TypeError(
                    f"{fault!r} is a fault of {other}, and this server has {here}: it would do"
                    " nothing"
                )

    def remove(self, *faults: Fault) -> None:
        """From now on, these are gone.

        Raises:
          ValueError: one of them is not there.
        """
        for fault in faults:
            if fault not in self._faults:
                raise ValueError(f"{fault!r} is not there: there are {list(self)!r}")
            self._faults.remove(fault)
        self._changed.unpark_all()

    def clear(self) -> None:
        """From now on, nothing is wrong."""
        self._faults.clear()
        self._changed.unpark_all()

    @contextmanager
    def during(self, *faults: Fault) -> Iterator[None]:
        """These, too, in the block.

        ``with faults.during(Latency(30)): ...``
        """
        self.add(*faults)
        try:
            yield
        finally:
            self.remove(*(fault for fault in faults if fault in self._faults))

    def of(self, kind: type[F], towards: Towards) -> list[F]:
        """Those of one kind that are there now for one way, in the order of their coming."""
        return [
            fault
            for fault in self._faults
            if isinstance(fault, kind) and getattr(fault, "towards", None) in {None, towards}
        ]

    def accept_error(self) -> OSError | None:
        """What an accept meets now, if anything; each `AcceptError` as often as it says."""
        for fault in self.of(AcceptError, "server"):
            self._errors_met += 1
            if self._errors_met >= fault.times:
                self._errors_met = 0
                self.remove(fault)
            return fault.error()
        return None

    def chance(self, *whose: object) -> random.Random:
        """Numbers drawn for one thing alone, the same for the same seed."""
        return random.Random(repr((self._seed, *whose)))  # noqa: S311  (to be repeated, not secret)

    def call_when_added(self, heed: Callable[[], None]) -> None:
        """Call this whenever there are more: some strike at once."""
        self._heeded_by.append(heed)

    def call_no_more(self, heed: Callable[[], None]) -> None:
        """Do not, from now on."""
        self._heeded_by.remove(heed)

    async def change(self) -> None:
        """Wait until they change."""
        await self._changed.park()
