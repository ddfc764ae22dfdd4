"""Operations that wait: tried, waited for within bounds, and blamed on the peer where it is due.

The rules this file keeps:

* No operation waits in the kernel: each is tried, and waits here if it would block. So a wait
  can end for more than one reason, and the server's time-outs are not the kernel's, which
  would reach everybody who has the descriptor.
* An error is the peer's only if the handler has not ended its output itself.
"""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Callable
from typing import Any, TypeVar

from ..._facts.errors import IdleTimeout, PeerGone, WriteTimeout
from ..._sockets.making import NOT_WAITING
from .blame import blame_peer
from .loan import Loan
from .polling import has_input

T = TypeVar("T")

# A plain int: with socket's enums, the arithmetic took longer than the system call.
PEEK = int(socket.MSG_PEEK)


class WouldBlock(BlockingIOError):
    """An operation was tried, and would wait.

    Attributes:
      has_moved: whether something has moved all the same, half a TLS record, say: a time-out
        begins anew.
    """

    def __init__(self, *, has_moved: bool = False) -> None:
        super().__init__(errno.EAGAIN, os.strerror(errno.EAGAIN))
        self.has_moved = has_moved


class Waiting:
    """Reads and writes of one loan, for what has a descriptor and is told how to try them."""

    __slots__ = ()

    _loan: Loan

    def _number(self) -> int:
        """The descriptor; -1 if there is none any more."""
        raise NotImplementedError

    def _has_input(self) -> bool:
        """Whether a read would get something now, or the end."""
        return has_input(self._number())

    # Reading -----------------------------------------------------------------

    def _receive(
        self, function: Callable[..., T], wanted: int, flags: int, *arguments: Any
    ) -> T | None:
        """Receive by ``function``, and note what came.

        Args:
          function: tries it, with ``arguments``; raises `BlockingIOError` if nothing is there.
          wanted: bytes that are asked for; 0: none is no end of input.
          flags: those of the handler.

        Returns:
          What ``function`` does; None if a drain comes before a request, or the request
          was cancelled.
        """
        loan, state = self._loan, self._loan.state
        state.reading = True
        try:
            got = self._receive_in_time(function, flags, arguments)
        except OSError as error:
            raise self._blame(error, reading=True) from None
        finally:
            state.reading = False
        size = _size_of(got)
        if size:
            loan.note_read(size, peeked=bool(flags & PEEK))
        elif wanted and not loan.stream.ended_idle:
            loan.stream.at_eof = True
        return got

    def _receive_in_time(
        self, function: Callable[..., T], flags: int, arguments: tuple[Any, ...]
    ) -> T | None:
        loan, state, stream = self._loan, self._loan.state, self._loan.stream
        deadline = None
        # It is tried first also where an answer has just gone: by the time that this thread has
        # the interpreter again, the next request is commonly there (a third faster than a wait).
        while not loan.interrupted:  # else it would be fed with what is still queued
            if state.peer_was_quiet and loan.drain_ends_read():
                stream.ended_idle = True
                break
            try:
                return function(*arguments)
            except BlockingIOError as error:
                if flags & NOT_WAITING or not self._waits():
                    raise
                if _has_moved(error) and state.timeout is None:
                    deadline = None
            if deadline is None:
                deadline = self._deadline(loan.idle)
            if not loan.wait_for_input(self._number(), deadline):
                stream.ended_idle = True
                break
        return None

    # Writing -----------------------------------------------------------------

    def _write(
        self,
        function: Callable[..., int],
        flags: int,
        *arguments: Any,
        deadline: float | None = None,
    ) -> int:
        """Send by ``function``, and note how much went.

        Args:
          function: tries it, with ``arguments``; raises `BlockingIOError` if there is no room.
          flags: those of the handler.
          deadline: until when, by `time.monotonic`; None: as long as the loan lets it.

        Returns:
          The bytes that were sent.
        """
        loan, state = self._loan, self._loan.state
        state.writing = True
        if loan.terms.drain.began:
            state.peer_was_quiet = not self._has_input()
        try:
            sent = self._write_in_time(function, flags, arguments, deadline)
        except OSError as error:
            raise self._blame(error, reading=False) from None
        finally:
            state.writing = False
        loan.note_written(sent)
        return sent

    def _write_in_time(
        self,
        function: Callable[..., int],
        flags: int,
        arguments: tuple[Any, ...],
        deadline: float | None,
    ) -> int:
        loan = self._loan
        while not loan.interrupted:  # else a client that reads would be fed on
            try:
                return function(*arguments)
            except BlockingIOError as error:
                if flags & NOT_WAITING or not self._waits():
                    raise
                if _has_moved(error) and loan.state.timeout is None:
                    deadline = None
            if deadline is None:
                deadline = self._deadline(loan.write)
            loan.wait_for_room(self._number(), deadline)
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))

    def _deadline(self, bound: float) -> float:
        """Until when to wait: the handler's own time-out, if it has set one, or the loan's."""
        own = self._loan.state.timeout
        return time.monotonic() + (bound if own is None else own)

    def _waits(self) -> bool:
        """Whether an operation that would block waits, as far as the handler has asked for it."""
        state = self._loan.state
        if state.timeout is None and state.shown:
            return os.get_blocking(self._number())  # it may have been set there
        return state.timeout != 0

    # Errors ------------------------------------------------------------------

    def _blame(self, error: OSError, *, reading: bool) -> OSError:
        """The exception for an operation that met ``error``; noted, if the peer is behind it."""
        if isinstance(error, TimeoutError) and error.errno is None:
            return self._blame_for_time(reading=reading)
        stream = self._loan.stream
        ours = self._number() == -1 or (stream.output_ended and not reading)
        if not ours and (isinstance(error, ConnectionError) or error.errno == errno.ETIMEDOUT):
            stream.broken = PeerGone, f"the peer is gone: {error.strerror or error}"
            blame_peer(error, PeerGone, self._loan.terms.info)
        return error

    def _blame_for_time(self, *, reading: bool) -> OSError:
        loan, info = self._loan, self._loan.terms.info
        if loan.state.timeout is not None:  # the handler's own
            error = TimeoutError("timed out")
            blame_peer(error, IdleTimeout if reading else WriteTimeout, info)
            return error
        if reading:
            return IdleTimeout(f"no byte from the peer for {loan.idle:g} s (idle)", info=info)
        message = f"the peer took no byte for {loan.write:g} s (write)"
        loan.stream.broken = WriteTimeout, message
        return WriteTimeout(message, info=info)


def _has_moved(error: BlockingIOError) -> bool:
    return isinstance(error, WouldBlock) and error.has_moved


def _size_of(got: object) -> int:
    """Bytes of what a receive has returned."""
    if got is None:
        return 0
    return got if isinstance(got, int) else len(got[0] if isinstance(got, tuple) else got)  # type: ignore[arg-type]
