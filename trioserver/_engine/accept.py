"""The accept loop, and what the errors of an accept mean.

They come in three tiers, whoever raises them: the kernel's listener or one of
somebody's own. A connection's own error is counted and forgotten. A shortage of
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
from functools import partial
from typing import Protocol

import attrs
import trio
from trio.lowlevel import checkpoint, enable_ki_protection

from .._facts.address import Address, describe
from .._facts.backoff import Backoff
from .._facts.observers import error_log, log_safely
from .._sockets.binding import most_queued
from .._sockets.transport import DatagramTransport, Listener, Transport

ACCEPTS_AT_ONCE = 64
"""Accepts in a row before other tasks have their turn: a burst is taken in at
once, and a flood does not starve the requests that are being served."""


INTERRUPTIONS = 8
"""Tries that a listener has to get past a signal (EINTR), as Python's own accept has any
number (PEP 475): in a drain's last look there is no later one."""


class Admission(Protocol):
    """What an accept loop needs of its run."""

    reserve: ReserveDescriptor

    def is_open(self) -> bool:
        """Whether clients are still let in."""

    def has_room(self) -> bool:
        """Whether one more client may be accepted now."""

    async def wait_for_room(self) -> None:
        """Wait until that is so."""

    def admit(self, listener: Listener) -> bool:
        """Accept one client and start its task; false when none is waiting."""

    def shed(self, listener: Listener) -> bool:
        """Accept one client and turn it away; false when none is waiting."""

    def accept_failed(self, address: Address, error: OSError) -> None:
        """Count an error of an accept."""


@enable_ki_protection
async def accept_loop(listener: Listener, admission: Admission) -> None:
    """Accept on ``listener`` as long as clients are admitted and there is room.

    Protected from Ctrl-C, as everything between an accept and its task is; a
    signal then reaches the main task at its next checkpoint.

    Raises:
      OSError: of the fatal tier.
    """
    shortage: Shortage | None = None
    while admission.is_open():
        if not admission.has_room():
            await admission.wait_for_room()
            continue  # the drain may have closed the listener in the same tick
        await _wait_for_client(listener, admission)
        admitted, error = _accept_batch(listener, admission)
        if error is None:
            if not admitted:
                await checkpoint()  # a listener that waits without one keeps nobody else waiting
            elif shortage is not None:
                shortage.over()
                shortage = None
            continue
        admission.accept_failed(listener.address, error)
        tier = tier_of(error)
        if tier is Tier.FATAL:
            raise error
        if tier is Tier.CAPACITY:
            shortage = shortage or Shortage(listener.address)
            if admitted:
                shortage.eases()
            if shortage.lasts() and admission.reserve.helps_with(error):
                admission.reserve.release_for(partial(_shed_all, listener, admission))
            await trio.sleep(shortage.pause(error))
        else:
            await checkpoint()


async def _wait_for_client(listener: Listener, admission: Admission) -> None:
    try:
        await listener.wait_acceptable()
    except trio.ClosedResourceError:
        if admission.is_open():
            raise
        # Closed by the drain, in the very step in which this was to wake up.


def accept_now(listener: Listener, admission: Admission) -> None:
    """Admit who is there now, as long as clients are admitted.

    A client that is dropped or turned away, or is an error of its own, does not
    hide the next one.

    Raises:
      OSError: of the fatal tier.
    """
    for _ in range(most_queued(listener)):
        if not admission.is_open():
            return
        try:
            if not admission.admit(listener):
                return
        except OSError as error:
            admission.accept_failed(listener.address, error)
            tier = tier_of(error)
            if tier is Tier.FATAL:
                raise
            if tier is Tier.CAPACITY:
                return


def _accept_batch(listener: Listener, admission: Admission) -> tuple[int, OSError | None]:
    """How many clients were admitted, and the error that ended it, if one did."""
    admitted = 0
    try:
        while admission.is_open() and admission.has_room() and admission.admit(listener):
            admitted += 1
            if admitted == ACCEPTS_AT_ONCE:
                break
    except OSError as error:
        return admitted, error
    return admitted, None


def _shed_all(listener: Listener, admission: Admission) -> None:
    for _ in range(ACCEPTS_AT_ONCE):
        if not admission.shed(listener):
            return


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
        """Hold none."""
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
