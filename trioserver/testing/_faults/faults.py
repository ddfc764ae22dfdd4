"""The faults that a network has at the moment; they can change while it is used."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeAlias, TypeVar

from trio.lowlevel import ParkingLot

from .kinds import (
    FAULTS,
    AcceptError,
    Bandwidth,
    Duplicate,
    Fault,
    LimitData,
    Loss,
    Refuse,
    Reorder,
    Reset,
    Slice,
    SlowClose,
    Stall,
    Towards,
)

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
            if not isinstance(fault, FAULTS):
                known = ", ".join(kind.__name__ for kind in FAULTS)
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
        """The present faults of one kind that apply to one way, in the order of their coming."""
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
        """Call ``heed`` whenever faults are added: some strike at once."""
        self._heeded_by.append(heed)

    def call_no_more(self, heed: Callable[[], None]) -> None:
        """Stop calling ``heed``."""
        self._heeded_by.remove(heed)

    async def change(self) -> None:
        """Wait until faults are added or removed."""
        await self._changed.park()
