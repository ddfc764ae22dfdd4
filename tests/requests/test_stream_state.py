"""The state of a connection's bytes: one object, which goes whole to whoever serves it."""

import socket

import attrs
import pytest
import trio

from trioserver import Limits, RequestInfo, Timeouts
from trioserver._modes.processes.protocol.frames import FrameError, Message
from trioserver._modes.processes.protocol.result import Result
from trioserver._modes.processes.protocol.task import ConnectionTask, pack_task, unpack_task
from trioserver._modes.threads.lent_connection import LentConnection
from trioserver._requests.stream_state import StreamState
from trioserver._sockets.stream_sockets import SocketTransport

INFO = RequestInfo(id=1, client_address=None, server_address=None, started=0.0, started_at=0.0)
NEVER_BACK = {"pending": bytearray(b"early")}
SPECIAL = {"broken": (trio.BrokenResourceError, "half a reply"), **NEVER_BACK}
# For each fact, new ones included, a value that is not the default.
PLAIN = [field for field in attrs.fields(StreamState) if field.name not in SPECIAL]
FACTS = SPECIAL | {field.name: type(field.default)(7) for field in PLAIN}


def test_task_brings_all_facts():
    """Whatever a hook has done to a connection, the worker knows, too."""
    state = StreamState(**FACTS)
    task = ConnectionTask(INFO, 1.0, None, (1, 2, 3), state, 1.0, 1.0, True, True, 0.0)
    assert unpack_task(Message.CONNECTION, pack_task(task)) == task


def test_result_brings_each_fact_back():
    """Each by itself; and what is pending has been taken."""
    for name in FACTS.keys() - NEVER_BACK.keys():
        state = StreamState(**{name: FACTS[name]})
        told = Result(stream=attrs.evolve(state, pending=bytearray(b"left"))).as_facts()
        assert set(told["stream"]) == {name}
        assert Result.from_facts(told).stream == state


@pytest.mark.parametrize(
    "stream",
    [{"received": -1}, {"sent": True}, {"at_eof": 1}, {"broken": None}, {"pending": ""}, []],
    ids=str,
)
def test_result_with_other_facts_is_refused(stream):
    """A worker is not trusted."""
    with pytest.raises(FrameError, match="not how a request ends"):
        Result.from_facts({"outcome": "completed", "stream": stream})


@pytest.fixture
def connection():
    """One over a pair of sockets."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield LentConnection(SocketTransport(ours), INFO, timeouts=Timeouts(), limits=Limits())


async def test_thread_writes_the_state_of_the_connection(connection):
    """While it has the socket, and as it has left it."""
    loan = connection._lend(ends_idle=False)
    loan.stream.received, loan.stream.broken = 3, (trio.BrokenResourceError, "cut short")
    assert connection.bytes_received == 3
    connection._take_back()
    assert connection.bytes_received == 3
    with pytest.raises(trio.BrokenResourceError, match="cut short"):
        await connection.send_all(b"more")


async def test_thread_left_behind_changes_nothing_any_more(connection):
    """Its request has a record by then."""
    loan = connection._lend(ends_idle=False)
    loan.stream.sent = 3
    connection._give_away()
    loan.stream.sent = 4
    assert connection.bytes_sent == 3
