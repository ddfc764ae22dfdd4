"""What the errors of an accept mean, and what is done about a shortage.

They come in three tiers, and it makes no difference whether the kernel's listener
raises them or one of a program's own. A connection's own error is counted and
forgotten. A shortage of descriptors or memory makes the loop pause, longer each time;
it is logged once when it begins and once when it ends, and live connections notice
nothing. Any other error means that the listener is broken, and stops the server. When
no client is there (any more), that is no error at all.
"""

from __future__ import annotations

import enum
import errno
import logging
import math
import os
from collections.abc import Callable
from contextlib import suppress

import attrs
import trio

from .._facts.address import Address, describe
from .._facts.backoff import Backoff
from .._facts.observers import error_log, log_safely
from .._sockets.transport import DatagramTransport, Listener, Transport

INTERRUPTIONS = 8
"""How often an accept is tried again after a signal (EINTR). Python's own accept tries
without end (PEP 475), and after a drain's last look there is no later one."""


class Tier(enum.Enum):
    """What an error of accept(2), or of receiving a datagram, is about."""

    NOBODY = "no client is there (any more), or a signal came in between: wait for the next"
    CONNECTION = "one client's own: try the next"
    CAPACITY = "the program is out of something: wait"
    FATAL = "the listener itself: stop"


_NOBODY = frozenset({errno.EAGAIN, errno.EWOULDBLOCK, errno.EINTR})
_CONNECTION_ERRORS = frozenset(
    getattr(errno, name)
    for name in (
        # accept(2): errors already pending on the new connection come out of
        # the accept, and are to be treated "like EAGAIN by retrying".
        *("ENETDOWN", "EPROTO", "ENOPROTOOPT", "EHOSTDOWN", "ENONET", "EHOSTUNREACH"),
        *("EOPNOTSUPP", "ENETUNREACH", "ECONNABORTED", "ECONNRESET", "ETIMEDOUT"),
        # A firewall rule forbids this one.
        "EPERM",
        # Datagrams: this one was too large; on some systems, an earlier reply
        # did not arrive, which the next receive is told.
        *("EMSGSIZE", "ECONNREFUSED"),
        # POSIX and Solaris have these in the same role.
        *("ENOSR", "ESOCKTNOSUPPORT", "EPROTONOSUPPORT"),
    )
    if hasattr(errno, name)
)
_DESCRIPTOR_ERRORS = frozenset(
    getattr(errno, name) for name in ("EMFILE", "ENFILE", "WSAEMFILE") if hasattr(errno, name)
)
_CAPACITY_ERRORS = _DESCRIPTOR_ERRORS | frozenset(
    getattr(errno, name) for name in ("ENOBUFS", "ENOMEM", "WSAENOBUFS") if hasattr(errno, name)
)

# Of errors that were raised by hand, as ``raise ConnectionAbortedError``: they have no number.
_NUMBERS: tuple[tuple[type[OSError], int], ...] = (
    (BlockingIOError, errno.EAGAIN),
    (InterruptedError, errno.EINTR),
    (ConnectionAbortedError, errno.ECONNABORTED),
    (ConnectionResetError, errno.ECONNRESET),
    (ConnectionRefusedError, errno.ECONNREFUSED),
    (TimeoutError, errno.ETIMEDOUT),
)


def tier_of(error: OSError) -> Tier:
    """Which tier an error of an accept belongs to."""
    number = error.errno
    if number is None:
        number = next((of_it for kind, of_it in _NUMBERS if isinstance(error, kind)), None)
    if number in _NOBODY:
        return Tier.NOBODY
    if number in _CONNECTION_ERRORS:
        return Tier.CONNECTION
    if number in _CAPACITY_ERRORS:
        return Tier.CAPACITY
    return Tier.FATAL


def next_client(listener: Listener) -> tuple[Transport | DatagramTransport, Address] | None:
    """Accept the next client of ``listener``; None if nobody is there, however it says so.

    Raises:
      OSError: of one of the tiers.
    """
    interruptions = 0
    while True:
        try:
            return listener.accept_now()
        except OSError as error:
            if tier_of(error) is not Tier.NOBODY:
                raise
            interruptions += 1
            was_interrupted = error.errno == errno.EINTR or isinstance(error, InterruptedError)
            if not was_interrupted or interruptions == INTERRUPTIONS:
                return None


@attrs.define(eq=False)
class Shortage:
    """A time of capacity errors on one listener: how long to pause, and when to shed.

    The pauses double from 5 ms to 1 s, as in Go's net/http: clients hardly notice a
    short shortage, and a long one costs one try a second. (``socketserver`` tries
    400 000 times a second and says nothing.)
    """

    FIRST_PAUSE = 0.005
    LONGEST_PAUSE = 1.0

    _address: Address
    _backoff: Backoff = attrs.field(init=False)
    _began: float = attrs.field(factory=trio.current_time)
    _errors: int = 0
    _longest_since: float = math.inf

    def __attrs_post_init__(self) -> None:
        self._backoff = Backoff(self.FIRST_PAUSE, self.LONGEST_PAUSE)

    def pause(self, error: OSError) -> float:
        """Seconds to wait after one more error."""
        if not self._errors:
            message = "cannot accept on %s, pausing: %s"
            log_safely(error_log, logging.WARNING, message, describe(self._address), error)
        self._errors += 1
        pause = self._backoff.grow()
        if self._backoff.is_longest and self._longest_since == math.inf:
            self._longest_since = trio.current_time()
        return pause

    def eases(self) -> None:
        """Pause briefly again: clients were admitted before the error.

        At the limit, Linux raises EMFILE before it looks whether a client is there. So
        even a batch of accepts that took in all clients ends with it.
        """
        self._backoff.reset()
        self._longest_since = math.inf

    def lasts(self) -> bool:
        """Whether the pause has stood at its longest for a second."""
        return trio.current_time() - self._longest_since >= self.LONGEST_PAUSE

    def over(self) -> None:
        """Log that an accept has worked again."""
        log_safely(
            error_log,
            logging.WARNING,
            "accepting on %s again, after %d errors in %.3f s",
            describe(self._address),
            self._errors,
            trio.current_time() - self._began,
        )


@attrs.define(eq=False)
class ReserveDescriptor:
    """A descriptor that is kept for the time when there are no others.

    While it is given back for an instant, queued clients can be accepted one by one,
    and turned away at once instead of left hanging. This is best effort: another thread
    can take the descriptor in that instant.
    """

    _descriptor: int | None = None

    def take(self) -> None:
        """Open the descriptor, if that is possible and it is not open."""
        if self._descriptor is None:
            with suppress(OSError):
                self._descriptor = os.open(os.devnull, os.O_RDONLY)

    def give_back(self) -> None:
        """Close the reserve descriptor: nobody is accepted any more."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def helps_with(self, error: OSError) -> bool:
        """Whether one more free descriptor is what is missing."""
        return error.errno in _DESCRIPTOR_ERRORS

    def release_for(self, use: Callable[[], None]) -> None:
        """Call ``use`` with one more descriptor free. An `OSError` ends only ``use``."""
        self.give_back()
        try:
            with suppress(OSError):
                use()
        finally:
            self.take()
