"""How signals become orders: each is a call in Trio's thread, but for the last one of all.

The first SIGTERM or SIGINT ends a program in order, the next cancels what is left, and one more
ends the process on the spot. Not by `trio.open_signal_receiver`, for two reasons. The last one
is for a program whose handler keeps Trio's thread: Python runs what is here between two of its
bytecodes. And the first one may come before there is a Trio to tell, as modules are imported.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import attrs
import trio

from .._facts.signals import dispositions, installed

ENDING = (signal.SIGINT, signal.SIGTERM)

_OTHERS = tuple(
    getattr(signal, name) for name in ("SIGHUP", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)
)  # Windows has none of them


@attrs.define(eq=False)
class SignalRelay:
    """Passes signals on to Trio's thread, also those that came before that ran.

    Attributes:
      orders_left: how many ending signals are orders yet; one more ends the process.
      has_begun: whether there is anything that could be cancelled.
    """

    orders_left: int
    has_begun: bool = False
    _obey: Callable[[int], None] | None = None
    _token: trio.lowlevel.TrioToken | None = None
    _early: list[int] = attrs.field(factory=list)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Listen to signals in the block; in another thread than the main one, to none.

        Of those that do not end it, only to signals with which nobody does anything else: the
        program has no handler of its own, and was not started by nohup(1), say.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = dispositions((*ENDING, *_OTHERS))
        heeded = {
            number: disposition
            for number, disposition in before.items()
            if number in ENDING or disposition is signal.SIG_DFL
        }
        with installed(self._on_signal, heeded):
            yield

    def connect(self, obey: Callable[[int], None]) -> None:
        """Have ``obey`` called with each signal from now on, and with those that have come."""
        self._obey, self._token = obey, trio.lowlevel.current_trio_token()
        while self._early:
            obey(self._early.pop(0))

    def _on_signal(self, number: int, _frame: object) -> None:
        if number in ENDING:
            if not self.orders_left:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            self.orders_left -= 1
        if self._token is not None and self._obey is not None:
            with suppress(trio.RunFinishedError):  # there is nothing left to end
                self._token.run_sync_soon(self._obey, number)
        elif number in ENDING and not (self.orders_left or self.has_begun):
            raise SystemExit(128 + number)
        else:
            self._early.append(number)
