"""The private names of CPython that sockets of threads rest on."""

from __future__ import annotations

import socket

import pytest

from trioserver import RequestInfo
from trioserver._modes.threads.blocking_socket import BlockingSocket
from trioserver._modes.threads.loan import Loan, LoanTerms
from trioserver._requests.drain import Drain
from trioserver._sockets.cpython import PRIVATE, PythonHasChanged

INFO = RequestInfo(id=1, client_address=None, server_address=None, started=0.0, started_at=0.0)


@pytest.mark.parametrize("name", PRIVATE)
def test_name_that_is_gone_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python without one of them cannot give a handler its socket, and says why."""
    ours, theirs = socket.socketpair()
    with ours, theirs, monkeypatch.context() as patch:
        patch.delattr(socket.socket, name)
        with pytest.raises(PythonHasChanged, match=rf"has no socket\.socket\.{name}, without"):
            BlockingSocket.over(ours, Loan(LoanTerms(INFO, Drain())))
