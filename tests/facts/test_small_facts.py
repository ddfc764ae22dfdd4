"""Pauses that grow, blocks that have so many seconds, and names of CPython that may be missing."""

import socket
import socketserver
from multiprocessing import forkserver

import pytest
import trio
from support.scenes import table

from trioserver import RequestInfo
from trioserver._facts import cpython
from trioserver._facts.backoff import Backoff
from trioserver._facts.bounded import Bounded
from trioserver._facts.cpython import PRIVATE, PythonHasChanged
from trioserver._modes.threads.blocking_socket import BlockingSocket
from trioserver._modes.threads.loan import Loan, LoanTerms
from trioserver._requests.drain import Drain


def test_pauses_double_up_to_the_longest():
    """And stay there, however many tries fail; a success begins anew."""
    backoff = Backoff(0.1, 5.0)
    assert [backoff.grow() for _ in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert backoff.is_longest
    assert {backoff.grow() for _ in range(2000)} == {5.0}
    backoff.reset()
    assert not backoff.is_longest
    assert backoff.grow() == 0.1


@table(
    "seconds, options, told",
    {
        "in time": (2, {}, []),
        "too late": (4, {}, ["hook did not end within 3 s (cleanup)"]),
        "of a request": (4, {"whose": "7"}, ["hook did not end within 3 s (cleanup), for 7"]),
        "in time, as it has more": (4, {"least": 5.0}, []),
        "too late, and done all the same": (4, {"unless": lambda: True}, []),
        "of two time-outs": (4, {"bound": "a and b"}, ["hook did not end within 3 s (a and b)"]),
    },
)
async def test_bounded(seconds, options, told, autojump_clock, caplog):
    """The block is cut, shielded as it is, and that is told once, with an error that none has."""
    bound = Bounded(3, "hook", error=ValueError("first"), **options)
    with trio.move_on_after(0):  # pending, and no concern of what is shielded
        with bound:
            await trio.sleep(seconds)
        assert trio.current_time() == min(seconds, options.get("least", 3.0))
    assert caplog.messages == told
    assert [str(record.exc_info[1]) for record in caplog.records] == ["first"] * len(told)
    assert bound._error is None or not told


INFO = RequestInfo(id=1, client_address=None, server_address=None, started=0.0, started_at=0.0)


@pytest.mark.parametrize("name", PRIVATE)
def test_name_that_is_gone_is_told(name, monkeypatch):
    """A Python without one of them cannot give a handler its socket, and says why."""
    ours, theirs = socket.socketpair()
    with ours, theirs, monkeypatch.context() as patch:
        patch.delattr(socket.socket, name)
        with pytest.raises(PythonHasChanged, match=rf"has no socket\.socket\.{name}, without"):
            BlockingSocket.over(ours, Loan(LoanTerms(INFO, Drain())))


def test_missing_names_of_others_are_told(monkeypatch):
    """So is a name of socketserver or multiprocessing that is gone, and what rests on it."""
    server = object.__new__(socketserver.BaseServer)
    with pytest.raises(PythonHasChanged, match=r"no _BaseServer__is_shut_down .* adopt\(\) rests"):
        cpython.end_of_serve_forever(server)
    monkeypatch.delattr(forkserver, "_forkserver")
    with pytest.raises(PythonHasChanged, match="no _forkserver "):
        cpython.fork_server_pid()
