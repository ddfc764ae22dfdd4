"""What a handler outside of Trio does with its socket: for the server to look at.

A wait for a request that has not begun is a wait for the drain, too, and whichever
comes first, the handler's own thread sees: nobody else could tell whether a request
had begun by the time that he ended the wait.
"""

from __future__ import annotations

import math
import select
import socket
import sys
import time
from collections.abc import Callable
from typing import Protocol

import attrs

from ..._facts.errors import IdleTimeout, PeerGone, RequestEnded, WriteTimeout
from ..._facts.events import RequestInfo
from ..._facts.validators import LARGEST_INT
from ..._requests.stream_state import StreamState
from ..._sockets.descriptors import Identity


class HasFileno(Protocol):
    """Something to wait for."""

    def fileno(self) -> int:
        """Its descriptor; -1 if it has none."""


class KnowsDrain(Protocol):
    """Whether the server drains."""

    @property
    def began(self) -> bool:
        """Whether it does."""

    @property
    def wakeup(self) -> HasFileno:
        """Becomes readable when it does."""


@attrs.define(eq=False)
class SocketUse:
    """What a handler does with its socket, for another thread to look at.

    Each attribute is written by one side alone, and a stale value does no harm.

    Attributes:
      info: the facts of the request.
      drain: whether the server drains.
      stream: what is known of the connection's bytes: the connection's own.
      new_until: until when, by `time.monotonic`, a drain waits for a first byte.
      ends_idle: whether a drain may end a wait between two requests.
      idle: seconds that a read waits for a byte.
      write: seconds that a write waits for room.
      timeout: seconds that the handler has set for every operation, in the place
        of those; 0: it does not wait.
      reading: whether a read waits.
      writing: whether a write waits.
      answered: whether nothing was read since the last write.
      peer_was_quiet: during a drain, whether the peer had sent nothing more when the
        last write began; see `Sender.peer_was_quiet`.
      held: bytes that files have read and not handed out.
      interrupted: whether the request was cancelled; nothing is read any more.
      number: the descriptor, once the handler's socket has none any more.
      shown: whether the handler knows the descriptor's number, so that its mode
        is what the handler thinks it is.
      identity: what is behind that number then; see `is_lost`.
      hand_over: called by the handler's thread before it detaches the descriptor.
    """

    info: RequestInfo
    drain: KnowsDrain
    stream: StreamState = attrs.field(factory=StreamState)
    new_until: float = -math.inf
    ends_idle: bool = True
    idle: float = math.inf
    write: float = math.inf
    timeout: float | None = attrs.field(factory=socket.getdefaulttimeout)
    reading: bool = False
    writing: bool = False
    answered: bool = True
    peer_was_quiet: bool = False
    held: int = 0
    interrupted: bool = False
    number: int = -1
    shown: bool = False
    identity: Identity | None = None
    hand_over: Callable[[], object] = lambda: None

    def waits_idle(self) -> bool:
        """Whether a read waits for the first byte of a request."""
        return self.reading and self.is_between_requests()

    def is_between_requests(self) -> bool:
        """Whether the next byte will be the first of a request, as far as can be told."""
        return self.answered and not self.held and not self.stream.pending

    def drain_ends_read(self) -> bool:
        """Whether a read that begins now is for a request that came too late for the drain."""
        return self.peer_was_quiet and self.ends_idle and self.is_between_requests()

    def wait_for_input(self, number: int, deadline: float) -> bool:
        """Wait until the descriptor has input, or its end.

        Args:
          deadline: until when, by `time.monotonic`.

        Returns:
          False if a drain has come before a request.

        Raises:
          TimeoutError: neither did in time.
        """
        if not self.ends_idle or not self.is_between_requests():
            if not _wait(number, deadline):
                raise TimeoutError
            return True
        while True:
            until = self._request_may_come_until()
            wakeup = self.drain.wakeup.fileno() if until == math.inf else -1
            if _wait(number, min(until, deadline), wakeup=wakeup):
                return True
            if self._request_may_come_until() <= time.monotonic():
                return False
            if deadline <= time.monotonic():
                raise TimeoutError

    def _request_may_come_until(self) -> float:
        """Until when a wait between requests may go on; ``inf`` while nothing drains."""
        if not self.drain.began:
            return math.inf
        return -math.inf if self.stream.received else self.new_until

    def was_read(self, size: int, *, peeked: bool) -> None:
        """A read has got ``size`` bytes."""
        self.answered = self.peer_was_quiet = False
        if not peeked:
            self.stream.received += size

    def will_write(self, number: int) -> None:
        """A write to the descriptor begins."""
        if self.drain.began:
            self.peer_was_quiet = not has_input(number)

    def was_written(self, size: int) -> None:
        """A write has sent ``size`` bytes."""
        if size:
            self.stream.sent += size
            self.answered = True

    def blame_peer(self, error: OSError, kind: type[RequestEnded]) -> None:
        """Note on ``error`` that the peer is behind it."""
        vars(error)["_means"] = kind, self.info

    def as_ended(self, error: BaseException) -> RequestEnded | None:
        """``error`` in the server's words, if it is what the peer has done to the socket."""
        kind: type[RequestEnded] | None
        kind, info = vars(error).get("_means", (None, None))
        if kind is None or info is not self.info or not isinstance(error, OSError):
            return None
        return kind(f"{_IN_WORDS[kind]}: {error.strerror or error}", info=info)


_IN_WORDS: dict[type[RequestEnded], str] = {
    PeerGone: "the peer is gone",
    IdleTimeout: "the peer was silent for too long",
    WriteTimeout: "the peer took nothing for too long",
}


def has_input(number: int) -> bool:
    """Whether the descriptor has input now, or its end; of a listener: a client."""
    return _wait(number, -math.inf)


def wait_for_room(number: int, deadline: float) -> bool:
    """Wait until the descriptor takes output; false if it does not by ``deadline``."""
    return _wait(number, deadline, output=True)


def _wait(number: int, deadline: float, *, output: bool = False, wakeup: int = -1) -> bool:
    """Wait for input or its end, or for room; false when the time is up, or the drain begins."""
    left = deadline - time.monotonic()
    seconds = None if left == math.inf else min(max(0.0, left), LARGEST_INT / 1000)
    pipes = [] if wakeup == -1 else [wakeup]
    if sys.platform == "win32":
        reads, writes = ([], [number]) if output else ([number], [])
        ready = select.select(reads + pipes, writes, [], seconds)
        return any(number in numbers for numbers in ready)
    poll = select.poll()
    poll.register(number, select.POLLOUT if output else select.POLLIN)
    for one in pipes:
        poll.register(one, select.POLLIN)
    found = poll.poll(None if seconds is None else math.ceil(seconds * 1000))
    return any(which == number for which, _ in found)
