"""Operations that wait, without a socket: what they return, raise, and blame on the peer."""

import errno
import math
import os
import time

import attrs
import pytest

from trioserver import IdleTimeout, PeerGone, RequestInfo, WriteTimeout
from trioserver._modes.threads.blame import as_ended
from trioserver._modes.threads.loan import Loan, LoanTerms
from trioserver._modes.threads.waiting import Waiting
from trioserver._requests.drain import Drain
from trioserver._sockets.making import NOT_WAITING

INFO = RequestInfo(id=1, client_address=None, server_address=None, started=0.0, started_at=0.0)
SOON = 0.01
NOTHING_YET = BlockingIOError()
PEER_RESET = ConnectionResetError(errno.ECONNRESET, "reset")
PEER_CLOSED = BrokenPipeError(errno.EPIPE, "closed")


class OverPipes(Waiting):
    """One that waits for a pipe, and whose operations go as they are told."""

    def __init__(self, reads, writes, **terms):
        self._loan = Loan(LoanTerms(INFO, Drain(), **terms))
        self._reads, self._writes = reads, writes

    def _number(self):
        return self._writes if self._loan.state.writing else self._reads

    def read(self, *results, flags=0):
        """Receive; each try has the next of the results."""
        return self._receive(in_turn(*results), 10, flags)

    def write(self, *results, flags=0, deadline=None):
        """Send; each try has the next of the results."""
        return self._write(in_turn(*results), flags, deadline=deadline)


def in_turn(*results):
    """A function that returns or raises one after the other."""
    left = iter(results)

    def function():
        result = next(left)
        if isinstance(result, Exception):
            raise result
        return result

    return function


@attrs.frozen
class Pipes:
    """An empty pipe, and a full one."""

    empty: int
    feeds_empty: int
    full: int


@pytest.fixture
def pipes():
    """Both, closed at the end."""
    (empty, feeds_empty), (behind_full, full) = os.pipe(), os.pipe()
    os.set_blocking(full, False)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(full, bytes(65_536))
    yield Pipes(empty, feeds_empty, full)
    for number in (empty, feeds_empty, behind_full, full):
        os.close(number)


@pytest.fixture
def waits(pipes):
    """One whose peer says nothing, and takes nothing."""
    return OverPipes(pipes.empty, pipes.full, idle=SOON, write=SOON)


def test_what_is_there_is_taken_at_once(waits):
    """And counted."""
    assert (waits.read(b"abc"), waits.write(2)) == (b"abc", 2)
    assert (waits._loan.stream.received, waits._loan.stream.sent) == (3, 2)


def test_what_comes_in_time_is_taken(waits, pipes):
    """By a second try."""
    os.write(pipes.feeds_empty, b"!")
    assert waits.read(NOTHING_YET, b"abc") == b"abc"


def test_end_of_input_is_noted(waits):
    """It is the peer's."""
    assert waits.read(b"") == b""
    assert waits._loan.stream.at_eof


@pytest.mark.parametrize("flags", [0, NOT_WAITING])
def test_handler_that_does_not_wait(waits, flags):
    """It has said so for all operations, or for this one."""
    waits._loan.state.timeout = None if flags else 0
    for operation in (waits.read, waits.write):
        with pytest.raises(BlockingIOError):
            operation(NOTHING_YET, flags=flags)


def test_silence_ends_at_the_servers_bounds(waits):
    """Nothing can be sent after a write that has met its bound."""
    with pytest.raises(IdleTimeout, match=r"for 0.01 s \(idle\)"):
        waits.read(NOTHING_YET)
    assert waits._loan.stream.broken is None
    with pytest.raises(WriteTimeout, match=r"for 0.01 s \(write\)"):
        waits.write(NOTHING_YET)
    assert waits._loan.stream.broken == (WriteTimeout, "the peer took no byte for 0.01 s (write)")


@pytest.mark.parametrize(("way", "means"), [("read", IdleTimeout), ("write", WriteTimeout)])
def test_silence_ends_at_a_bound_of_the_handlers(waits, way, means):
    """It gets the classic exception, and the server knows what that means."""
    waits._loan.state.timeout = SOON
    with pytest.raises(TimeoutError, match="timed out") as caught:
        getattr(waits, way)(NOTHING_YET)
    assert type(as_ended(caught.value, INFO)) is means


def test_deadline_of_several_writes(waits):
    """It is theirs together."""
    began = time.monotonic()
    waits._loan.state.timeout = 60
    with pytest.raises(TimeoutError):
        waits.write(NOTHING_YET, deadline=began + SOON)
    assert time.monotonic() < began + 10


@pytest.mark.parametrize("way", ["read", "write"])
def test_peer_that_is_gone_is_blamed(waits, way):
    """Its request has ended with it."""
    with pytest.raises(ConnectionResetError) as caught:
        getattr(waits, way)(PEER_RESET)
    assert type(as_ended(caught.value, INFO)) is PeerGone
    assert waits._loan.stream.broken == (PeerGone, "the peer is gone: reset")


def test_peer_is_not_blamed_for_an_end_of_ours(waits):
    """A handler that ends its output and writes all the same has made a mistake."""
    waits._loan.stream.output_ended = True
    with pytest.raises(BrokenPipeError) as caught:
        waits.write(PEER_CLOSED)
    assert as_ended(caught.value, INFO) is None
    assert waits._loan.stream.broken is None


def test_request_that_is_cancelled_reads_no_more(waits):
    """Not even what is there."""
    waits._loan.interrupted = True
    assert waits.read(b"abc") is None


@pytest.mark.parametrize("new_until", [-math.inf, SOON])
def test_drain_ends_a_wait_for_a_request(pipes, new_until):
    """At once, or when a new connection has had its moment."""
    until = time.monotonic() + new_until
    waits = OverPipes(pipes.empty, pipes.full, new_until=until)
    waits._loan.terms.drain.began = True
    assert waits.read(NOTHING_YET, NOTHING_YET) is None
    assert waits._loan.stream.ended_idle
    assert not waits._loan.stream.at_eof
