"""What the errors of an accept mean, and what is done about a shortage.

They come in three tiers, whoever raises them: the kernel's listener or one of a
program's own. A connection's own error is counted and forgotten. A shortage of
descriptors or memory makes the loop pause, longer each time, and is told once
when it begins and once when it ends; live connections notice nothing. Anything
else means that the listener is broken, and stops the server. That nobody is
there (any more) is no error at all.
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
"""Tries that a listener has to get past a signal (EINTR), as Python's own accept has any
number (PEP 475): in a drain's last look there is no later one."""


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
    """The next client of ``listener``, whichever way it says that nobody is there.

    Raises:
      OSError: of one of the tiers.
    """
    for _ in range(INTERRUPTIONS):
        try:
            return listener.accept_now()
        except OSError as error:
            if tier_of(error) is not Tier.NOBODY:
                raise
            if error.errno != errno.EINTR and not isinstance(error, InterruptedError):
                return None
    return None


@attrs.define(eq=False)
class Shortage:
    """One stretch of capacity errors on one listener: how long to pause, when to shed.

    The pauses grow from 5 ms to 1 s by doubling, as in Go's net/http: a short
    shortage costs clients nothing to speak of, and a long one costs one try a
    second. (``socketserver`` tries 400 000 times a second and says nothing.)
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
        """Somebody was admitted before the error: pause briefly again.

        At the limit, Linux says EMFILE before it looks whether a client is
        there, so even a batch that took in everybody ends with it.
        """
        self._backoff.reset()
        self._longest_since = math.inf

    def lasts(self) -> bool:
        """Whether the pause has stood at its longest for a second."""
        return trio.current_time() - self._longest_since >= self.LONGEST_PAUSE

    def over(self) -> None:
        """An accept has worked again."""
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
    """A descriptor kept for the day when there are no others.

    Given back for an instant, it lets queued clients in one by one, to be
    turned away promptly instead of left hanging. Best effort: another thread
    can take it in that instant.
    """

    _descriptor: int | None = None

    def take(self) -> None:
        """Hold a descriptor, if one is to be had."""
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
        """Call ``use`` with one more descriptor free; an `OSError` in it ends it, and no more."""
        self.give_back()
        try:
            with suppress(OSError):
                use()
        finally:
            self.take()
