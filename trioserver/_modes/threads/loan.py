"""The loan of a connection's socket to a handler outside of Trio, and who writes what of it.

Two threads look at a loan: Trio's, which lends, and the handler's, which borrows. No lock
keeps them apart. It is enough that each thing has one writer, and that a stale value does no
harm:

* `LoanTerms` are fixed when the loan begins. Nobody writes them.
* `LoanState`, and the `StreamState` of the connection, are the borrower's to write.
* ``Loan.interrupted`` is the lender's to write, and the only thing that is. A write first says
  that it has begun, and then looks at it; who interrupts does it the other way round. So one of
  the two sees the other.

A wait for a request that has not begun is a wait for the drain, too. Whichever comes first,
the handler's own thread sees it: nobody else could tell whether a request had begun by the
time that it ended the wait.
"""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable
from typing import Any, Final, Literal, Protocol
from weakref import WeakSet

import attrs

from ..._facts.events import RequestInfo
from ..._requests.drain import WakeupPipe
from ..._requests.stream_state import StreamState
from ..._sockets.descriptors import Identity
from ..._sockets.tls_records import TLSRecords
from .polling import wait_for

_MOMENT = 0.05
"""Seconds after which a write that nobody can wake looks whether it is to go on."""


class HasFileno(Protocol):
    """An object with a descriptor that can be waited for."""

    def fileno(self) -> int:
        """Its descriptor; -1 if it has none."""


class KnowsDrain(Protocol):
    """The part of a `Drain` that a thread looks at."""

    @property
    def began(self) -> bool:
        """Whether the drain has begun."""

    @property
    def wakeup(self) -> HasFileno:
        """Becomes readable when the drain begins."""


@attrs.frozen(eq=False)
class LoanTerms:
    """What the lender has laid down for one loan.

    Attributes:
      info: the facts of the request.
      drain: whether the server drains.
      new_until: until when, by `time.monotonic`, a drain waits for a first byte.
      ends_idle: whether a drain may end a wait between two requests.
      idle: seconds that a read waits for a byte.
      write: seconds that a write waits for room.
      handshake: seconds that a TLS handshake may take.
      hand_over: called with the loan by the borrower's thread, before that detaches the
        descriptor: the lender gets another one.
    """

    info: RequestInfo
    drain: KnowsDrain
    new_until: float = -math.inf
    ends_idle: bool = True
    idle: float = math.inf
    write: float = math.inf
    handshake: float = math.inf
    hand_over: Callable[[Loan], object] = lambda _: None


@attrs.define(eq=False)
class LoanState:
    """What the borrower does with the socket. The borrower alone writes it.

    Attributes:
      timeout: seconds that the handler has set for every operation, in the place of the
        terms; 0: none waits; None: the terms hold.
      idle: seconds that the handler has set for reads alone, as an option of the socket.
      write: the same for writes.
      reading: whether a read waits.
      writing: whether a write waits.
      in_pieces: whether it is in the middle of what takes several writes.
      answered: whether nothing was read since the last write.
      peer_was_quiet: during a drain, whether the peer had sent nothing more when the last
        write began; see `Sender.peer_was_quiet`.
      held: bytes that files have read and not handed out.
      files: those that may hold output; None: there was none.
      hides_input: whether there is a file that may hold input, and nobody knows how much.
      number: the descriptor, once the handler has closed its socket.
      shown: whether the handler knows the descriptor's number, so that its mode is what the
        handler thinks it is.
      identity: what was behind that number when it was shown; see `is_lost`.
    """

    timeout: float | None = attrs.field(factory=socket.getdefaulttimeout)
    idle: float | None = None
    write: float | None = None
    reading: bool = False
    writing: bool = False
    in_pieces: bool = False
    answered: bool = True
    peer_was_quiet: bool = False
    held: int = 0
    files: WeakSet[Any] | None = None
    hides_input: bool = False
    number: int = -1
    shown: bool = False
    identity: Identity | None = None

    def note_file(self, file: Any) -> None:
        """Note that there is a file that may hold output."""
        if self.files is None:
            self.files = WeakSet()
        self.files.add(file)

    def flush_files(self) -> None:
        """Have what files hold go out."""
        for file in list(self.files or ()):
            try:
                may_hold = not file.closed and file.writable()
            except ValueError:
                continue  # it was detached from what it has written to
            if may_hold:
                file.flush()


@attrs.define(eq=False)
class Loan:
    """One loan, as both sides see it.

    Attributes:
      terms: what the lender has laid down.
      stream: what is known of the connection's bytes; the connection's own.
      state: what the borrower does.
      wakeup: wakes a write that waits when the request is cancelled, or over.
      records: the TLS of the connection; None without it.
      interrupted: whether the request was cancelled; nothing is read or written any more.
    """

    terms: Final[LoanTerms]
    stream: Final[StreamState] = attrs.field(factory=StreamState)
    state: Final[LoanState] = attrs.field(factory=LoanState)
    wakeup: Final[WakeupPipe] = attrs.field(factory=WakeupPipe)
    records: TLSRecords | None = None
    interrupted: bool = attrs.field(default=False, init=False)

    # For the lender, who looks ---------------------------------------------------

    def interrupt(self) -> None:
        """End the borrower's writes: the one that waits, and all that come."""
        self.interrupted = True
        self.wakeup.wake_all()

    @property
    def doing(self) -> Literal["working", "reading", "idle", "writing"]:
        """What the borrower does with the socket; ``idle`` is a wait between two requests."""
        if self.is_writing:
            return "writing"
        if not self.state.reading:
            return "working"
        return "idle" if self.is_between_requests() else "reading"

    @property
    def is_writing(self) -> bool:
        """Whether the borrower has begun to write something, and is not done with it."""
        return self.state.writing or self.state.in_pieces

    @property
    def cuts_write(self) -> bool:
        """Whether an interruption comes in the middle of a write, which is half a reply then."""
        # In this order: a write that is cut says so before it says that it is over.
        return self.is_writing or self.stream.broken is not None

    @property
    def identity(self) -> Identity | None:
        """Which file the descriptor's number stands for, once the borrower was shown the number."""
        return self.state.identity

    # For the borrower, who writes ------------------------------------------------

    @property
    def idle(self) -> float:
        """Seconds that a read waits for a byte, unless the handler has set a time-out for all."""
        return self.terms.idle if self.state.idle is None else self.state.idle

    @property
    def write(self) -> float:
        """Seconds that a write waits for room, unless the handler has set a time-out for all."""
        return self.terms.write if self.state.write is None else self.state.write

    def is_between_requests(self) -> bool:
        """Whether the next byte will be the first of a request, as far as can be told."""
        return self.state.answered and not self.state.held and not self.stream.pending

    def drain_ends_read(self) -> bool:
        """Whether a read that begins now is for a request that came too late for the drain."""
        return self.terms.ends_idle and self.is_between_requests()

    def wait_for_input(self, number: int, deadline: float) -> bool:
        """Wait until the descriptor has input, or its end.

        Args:
          number: the descriptor.
          deadline: until when, by `time.monotonic`.

        Returns:
          False if a drain has come before a request.

        Raises:
          TimeoutError: neither did in time.
        """
        if not self.terms.ends_idle or not self.is_between_requests():
            if not wait_for(number, deadline):
                raise TimeoutError
            return True
        while True:
            until = self._request_may_come_until()
            wakeup = self.terms.drain.wakeup.fileno() if until == math.inf else -1
            if wait_for(number, min(until, deadline), wakeup=wakeup):
                return True
            if self._request_may_come_until() <= time.monotonic():
                return False
            if deadline <= time.monotonic():
                raise TimeoutError

    def wait_for_room(self, number: int, deadline: float) -> None:
        """Wait until the descriptor takes output, or the request is cancelled, or for a moment.

        Args:
          number: the descriptor.
          deadline: until when, by `time.monotonic`.

        Raises:
          TimeoutError: neither happened in time.
        """
        self.wakeup.open()
        if self.interrupted:  # perhaps before there was something to wake us by
            return
        wakeup, until = self.wakeup.fileno(), deadline
        if wakeup == -1:  # there is no descriptor left for it
            until = min(deadline, time.monotonic() + _MOMENT)
        room = wait_for(number, until, output=True, wakeup=wakeup)
        if not room and deadline <= time.monotonic():
            raise TimeoutError

    def _request_may_come_until(self) -> float:
        """Until when a wait between requests may go on; ``inf`` while nothing drains."""
        if not self.terms.drain.began:
            return math.inf
        return -math.inf if self.stream.received else self.terms.new_until

    def note_read(self, size: int, *, peeked: bool) -> None:
        """Note that a read has got ``size`` bytes, at least one."""
        state = self.state
        state.answered = state.peer_was_quiet = False
        if not peeked:
            self.stream.received += size

    def note_written(self, size: int) -> None:
        """Note that a write has sent ``size`` bytes."""
        if size:
            self.stream.sent += size
            self.state.answered = True

    def note_shown(self, identity: Identity | None) -> None:
        """Note that the handler gets to know the descriptor's number.

        Args:
          identity: what is behind it.
        """
        self.state.shown, self.state.identity = True, identity
        self.stream.may_have_sent = True

    def note_detached(self) -> None:
        """Note that the descriptor is the handler's own from now on."""
        self.stream.detached, self.state.identity = True, None
