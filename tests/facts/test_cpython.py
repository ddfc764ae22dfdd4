"""The private names of CPython that the library rests on: a missing one is told."""

import socket
import socketserver
from multiprocessing import forkserver

import pytest

from trioserver import RequestInfo
from trioserver._facts import cpython
from trioserver._facts.cpython import PRIVATE, PythonHasChanged
from trioserver._modes.threads.blocking_socket import BlockingSocket
from trioserver._modes.threads.loan import Loan, LoanTerms
from trioserver._requests.drain import Drain

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
