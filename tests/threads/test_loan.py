"""A loan of a socket to a thread: each thing in it has one writer."""

import socket
import threading

import attrs
import pytest
from support import Witness, connect, running, until
from support.threads import on_tcp

from trioserver import RequestInfo
from trioserver._modes.threads.loan import Loan, LoanState, LoanTerms
from trioserver._requests.drain import Drain
from trioserver._requests.stream_state import StreamState

INFO = RequestInfo(id=1, client_address=None, server_address=None, started=0.0, started_at=0.0)


def test_what_the_lender_has_laid_down_is_fixed():
    """The terms cannot be changed, nor can either side put another object in their place."""
    loan = Loan(LoanTerms(INFO, Drain()))
    for thing, name in ((loan.terms, "idle"), (loan, "terms"), (loan, "state"), (loan, "stream")):
        with pytest.raises(attrs.exceptions.FrozenError):
            setattr(thing, name, 1.0)


@pytest.mark.parametrize("ends", ["cancelled", "detached"])
async def test_each_thing_has_one_writer(ends, monkeypatch):
    """The state is the handler's thread's; that it is interrupted, and no more, is Trio's."""
    here, lent = threading.get_ident(), threading.Event()
    writers = {}

    def note(thing, name, value):
        if lent.is_set():
            in_trio = threading.get_ident() == here
            writers.setdefault((type(thing), name), set()).add(in_trio)
        object.__setattr__(thing, name, value)

    def handler(request, client_address, server):
        for kind in (Loan, LoanState, StreamState):
            monkeypatch.setattr(kind, "__setattr__", note)
        lent.set()
        try:
            request.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, bytes(16))
            request.settimeout(60)
            request.makefile("rb").readline()
            request.sendall(b"more")
            request.fileno()
            if ends == "detached":
                socket.close(request.detach())
            request.recv(10)
        except OSError:
            pass
        finally:
            lent.clear()

    witness = Witness()
    async with running(server := on_tcp(handler, observers=[witness])):
        async with await connect(server) as client:
            await client.send_all(b"line\n")
            assert await client.receive_some() == b"more"
            if ends == "cancelled":
                await until(lambda: [it.state for it in server.snapshot().requests] == ["idle"])
                server.cancel_request(1, "enough")
            await until(lambda: bool(witness.records))
    if ends == "cancelled":
        assert writers.pop((Loan, "interrupted")) == {True}
    assert {"timeout", "idle", "reading", "writing", "answered", "held", "shown"} <= {
        name for kind, name in writers if kind is LoanState
    }
    assert {"received", "sent", "may_have_sent"} <= {
        name for kind, name in writers if kind is StreamState
    }
    assert {each: who for each, who in writers.items() if who != {False}} == {}
