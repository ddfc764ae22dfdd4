"""Handlers in worker processes: on every kind of socket, of either colour."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from support import Witness, connect, plain_client, read_to_end, running, until
from support import process_handlers as handlers
from support.processes import SOON, both, is_there, on_tcp
from support.threads import THERE, ask, ask_by_datagram

import trioserver
from trioserver import HandlerFailed, Limits, Timeouts
from trioserver._modes.processes.protocol.frames import LONGEST_FROM_WORKER


@pytest.fixture(params=["tcp", "unix"])
def stream(request: pytest.FixtureRequest, folder: Path) -> Callable[..., trioserver.BaseServer]:
    """Makes a stream server of each kind, in turn."""
    if request.param == "tcp":
        return on_tcp
    return partial(trioserver.ProcessUnixStreamServer, str(folder / "server"), min_children=1)


@pytest.fixture(params=["udp", "unix"])
def datagram(request: pytest.FixtureRequest, folder: Path) -> Callable[..., trioserver.BaseServer]:
    """Makes a datagram server of each kind, in turn."""
    if request.param == "udp":
        return partial(trioserver.ProcessUDPServer, THERE, min_children=1)
    path = str(folder / "server")
    return partial(trioserver.ProcessUnixDatagramServer, path, min_children=1)


async def say(client: trio.SocketStream, words: bytes) -> None:
    """Say something that is answered at once."""
    await client.send_all(words)
    answer = b""
    while len(answer) < len(words):
        answer += await client.receive_some()
    assert answer == words.upper()


async def drained(server: Any, grace: float = 8) -> float:
    """Begin the drain, and wait until all requests have their outcome; how long that took."""
    began = time.perf_counter()
    server.shutdown(grace)
    await until(lambda: not server.requests)
    return time.perf_counter() - began


# What runs where ------------------------------------------------------------------


@both("Upper")
async def test_stream_handler(stream: Any, handler: Any) -> None:
    """`socketserver`'s handlers and asynchronous ones work as they are, with exact records."""
    witness = Witness()
    async with running(server := stream(handler, observers=[witness])):
        for _ in range(3):
            assert await ask(server, b"one\ntwo\n") == b"ONE\nTWO\n"
    assert witness.outcomes == ["completed"] * 3
    assert {(it.bytes_received, it.bytes_sent) for it in witness.records} == {(8, 8)}
    assert {it.info.mode for it in witness.records} == {"process"}


@both("Back")
async def test_datagram_handler(datagram: Any, handler: Any) -> None:
    """The same for datagrams."""
    witness = Witness()
    async with running(server := datagram(handler, observers=[witness])):
        for _ in range(3):
            assert await ask_by_datagram(server, b"hello") == b"olleh"
        await until(lambda: len(witness.records) == 3)
    assert witness.outcomes == ["completed"] * 3
    assert {(it.bytes_received, it.bytes_sent) for it in witness.records} == {(5, 5)}
    assert {it.info.mode for it in witness.records} == {"process"}


@both("Upper")
async def test_large_request_and_reply(stream: Any, handler: Any) -> None:
    """Megabytes pass both ways, whole, and are counted."""
    witness = Witness()
    lines = b"".join(b"%d %s\n" % (number, b"x" * 1000) for number in range(3000))
    async with running(server := stream(handler, observers=[witness])):
        async with await connect(server) as client, trio.open_nursery() as nursery:

            async def sends() -> None:
                await client.send_all(lines)
                await client.send_eof()

            nursery.start_soon(sends)
            assert await read_to_end(client) == lines.upper()
    [record] = witness.records
    assert (record.bytes_received, record.bytes_sent) == (len(lines), len(lines))


@both("tells")
async def test_copy_of_the_server(handler: Any) -> None:
    """``self.server`` is a copy: its class, fields, bound address, own attributes; unbound."""
    server = handlers.Greeting(
        THERE, handler, greeting="hi", observers=[Witness()], min_children=1, max_children=1
    )
    server.my_colour = "red"  # type: ignore[attr-defined]
    async with running(server) as address:
        first, second = [json.loads(await ask(server, b"")) for _ in range(2)]
    assert first["server"] == "Greeting"
    assert first["greeting"] == "hi"
    assert first["server_address"] == list(address)
    assert first["own"] == {"my_colour": "red"}
    assert (first["observers"], first["is_bound"]) == (0, False)
    # One copy a worker, and what a handler changes there stays there.
    assert second["pid"] == first["pid"] != os.getpid()
    assert second["own"] == {"my_colour": "red", "my_visits": 1}
    assert not hasattr(server, "my_visits")


@both("tells")
async def test_current_request(handler: Any) -> None:
    """``current_request()`` is the server's own info; a socket blocks."""
    witness = Witness()
    async with running(server := on_tcp(handler, observers=[witness])):
        told = [json.loads(await ask(server, b"")) for _ in range(3)]
    infos = [record.info for record in witness.records]
    assert [it["request"] for it in told] == [[it.id, str(it), "process"] for it in infos]
    assert [tuple(it["client_address"]) for it in told] == [it.client_address for it in infos]
    assert {it["blocks"] for it in told} == {True if handler is handlers.tells else None}


async def test_attributes_that_do_not_pickle(caplog: pytest.LogCaptureFixture) -> None:
    """Attributes of the user's own that do not pickle are left out, with a warning each."""
    server = on_tcp(handlers.tells)
    server.my_lock = lambda: None  # type: ignore[attr-defined]
    server.my_colour = "red"  # type: ignore[attr-defined]
    async with running(server):
        told = json.loads(await ask(server, b""))
    assert told["own"] == {"my_colour": "red"}
    [record] = caplog.records
    assert (record.name, record.levelname) == ("trioserver.error", "WARNING")
    assert "do not have ProcessTCPServer.my_lock, which does not pickle" in record.getMessage()
    assert callable(server.my_lock)  # type: ignore[attr-defined]


async def test_child_init() -> None:
    """``child_init`` runs once in each worker, before its first request."""
    async with running(server := on_tcp(handlers.tells, child_init=handlers.init)):
        told = [json.loads(await ask(server, b"")) for _ in range(2)]
    assert [it["init"] for it in told] == [f"ran in {it['pid']}" for it in told]
    assert "PROCESS_HANDLERS_INIT" not in os.environ


async def test_hooks_run_in_the_parent() -> None:
    """Every hook is called in the server's own process, in the usual order, also for errors."""
    server = handlers.Hooked(THERE, handlers.does, min_children=1)
    async with running(server):
        assert await ask(server, b"error") == b"begun."
    assert [name for name, _ in server.called] == [
        *("server_bind", "server_activate", "get_request", "verify_request"),
        *("process_request", "finish_request", "handle_error"),
        *("shutdown_request", "close_request", "server_close"),
    ]
    assert {pid for _, pid in server.called} == {os.getpid()}


@both("Upper")
async def test_input_read_ahead_is_not_lost(handler: Any) -> None:
    """What a hook has received and not used goes on to the worker; all is counted."""
    witness = Witness()
    server = handlers.Greets(THERE, handler, min_children=1, observers=[witness])
    async with running(server):
        assert await ask(server, b"hello\none\ntwo\n") == b"welcome\nONE\nTWO\n"
    [record] = witness.records
    assert (record.bytes_received, record.bytes_sent) == (14, 16)


@both("closes_early")
async def test_handler_that_closes(stream: Any, handler: Any, tmp_path: Path) -> None:
    """Its client is told at once, however long it then goes on."""
    witness = Witness()
    server = stream(handler, observers=[witness])
    server.my_path = str(tmp_path / "enough")

    def now() -> Any:
        return server.snapshot().requests[0]

    async with running(server):
        async with await connect(server) as client:
            await until(lambda: server.requests and now().state == "writing")
            assert len(await read_to_end(client)) == 20_000_000
            await until(lambda: now().state == "working")  # else a kill were one in a write
            assert now().bytes_sent == 20_000_000
            (tmp_path / "enough").touch()
            await until(lambda: witness.records)
    assert witness.outcomes == ["completed"]


async def test_handler_that_closes_the_descriptor(stream: Any) -> None:
    """It is its own there: no reason for a worker to end, as it was none of old."""
    witness = Witness()
    async with running(server := stream(handlers.makes_a_file, observers=[witness])):
        [pid] = server.active_children
        assert await ask(server, b"") == b"%d" % pid
        assert server.active_children == [pid]
    assert witness.outcomes == ["completed"]


# Errors ---------------------------------------------------------------------------------


@both("does")
async def test_error_in_a_handler(handler: Any, caplog: pytest.LogCaptureFixture) -> None:
    """It is a ``HandlerFailed`` with the worker's traceback; the worker serves on."""
    caplog.set_level(logging.ERROR)
    witness = Witness()
    async with running(server := on_tcp(handler, observers=[witness])):
        before = server.active_children
        assert await ask(server, b"error") == b"begun."
        assert await ask(server, b"nothing") == b"begun.%d" % before[0]
        assert server.active_children == before
    assert witness.outcomes == ["failed", "completed"]
    assert witness.records[0].reason == "HandlerFailed: ValueError: on purpose"
    assert (witness.records[0].bytes_received, witness.records[0].bytes_sent) == (5, 6)
    [record] = caplog.records
    assert record.exc_info is not None
    error = record.exc_info[1]
    assert isinstance(error, HandlerFailed)
    assert str(error) == "ValueError: on purpose"
    assert "in _fails\n    raise ValueError" in str(error.__cause__)
    assert "in _fails\n    raise ValueError" in caplog.text


@both("does")
async def test_error_that_does_not_pickle(handler: Any) -> None:
    """Errors travel as text, so that none is a problem."""
    witness = Witness()
    async with running(server := on_tcp(handler, observers=[witness])):
        assert await ask(server, b"unpicklable") == b"begun."
        assert (await ask(server, b"nothing")).startswith(b"begun.")
    assert witness.outcomes == ["failed", "completed"]
    assert witness.records[0].reason == "HandlerFailed: Unpicklable: cannot travel"


@both("does")
async def test_generator_exit_is_an_error(handler: Any) -> None:
    """EX-11: raised by hand it is a mistake of the handler's, and no end of anything else."""
    witness = Witness()
    async with running(server := on_tcp(handler, observers=[witness])):
        [pid] = server.active_children
        assert await ask(server, b"generator-exit") == b"begun."
        assert await ask(server, b"nothing") == b"begun.%d" % pid
    assert witness.outcomes == ["failed", "completed"]
    assert witness.records[0].reason.endswith(
        "RuntimeError: a handler or hook raised GeneratorExit"
    )


@both("does")
async def test_handle_error_is_called_with_it(handler: Any) -> None:
    """``handle_error`` finds the error as `sys.exception`, as ever."""
    server = handlers.Erring(THERE, handler, min_children=1)
    async with running(server):
        assert await ask(server, b"error") == b"begun."
    [error] = server.errors
    assert isinstance(error, HandlerFailed)
    assert "ValueError: on purpose" in str(error.__cause__)


@both("does")
async def test_first_error_is_never_lost(handler: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A ``handle_error`` that fails, and hides what it was told of, has both of them logged."""
    server = handlers.Hides(THERE, handler, min_children=1)
    async with running(server):
        assert await ask(server, b"error") == b"begun."
    assert "HandlerFailed: ValueError: on purpose" in caplog.text
    assert "in _fails\n    raise ValueError" in caplog.text
    assert "RuntimeError: the second" in caplog.text


def test_system_that_cannot_pass_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    """PR-15: it is refused when the server is built."""
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(NotImplementedError, match="worker processes need POSIX"):
        on_tcp(handlers.Upper)


async def test_handler_of_the_wrong_kind_is_refused() -> None:
    """What can be told of a handler is told when the server is built, as in the other modes."""
    with pytest.raises(TypeError, match="serves datagrams"):
        on_tcp(handlers.Back)
    with pytest.raises(TypeError, match="serves datagrams"):
        on_tcp(handlers.AsyncBack)
    with pytest.raises(TypeError, match="serves connections"):
        trioserver.ProcessUDPServer(THERE, handlers.Upper)


@both("Upper")
async def test_client_that_resets(handler: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A client that goes away is nobody's error: ``disconnected``, and no traceback."""
    witness = Witness()
    async with running(server := on_tcp(handler, observers=[witness])):
        async with await connect(server) as client:
            await say(client, b"one\n")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await until(lambda: witness.records)
        assert await ask(server, b"two\n") == b"TWO\n"
    assert witness.outcomes == ["disconnected", "completed"]
    assert not [it for it in caplog.records if it.levelno > logging.INFO]


# Drains ---------------------------------------------------------------------------------


@both("Upper")
async def test_wait_between_two_requests_ends_at_once(stream: Any, handler: Any) -> None:
    """A drain ends it, and the request is ``drained``."""
    async with running(server := stream(handler)):
        async with await connect(server) as client:
            for _ in range(3):
                await say(client, b"one\n")
            await until(lambda: server.snapshot().requests[0].state == "idle")
            assert await drained(server) < SOON
            assert await read_to_end(client) == b""
        report = await server.wait_closed()
    assert [str(it.outcome) for it in report.requests] == ["drained"]
    assert [(it.bytes_received, it.bytes_sent) for it in report.requests] == [(12, 12)]
    assert report.clean


@both("Upper")
async def test_connection_that_never_said_a_byte(handler: Any) -> None:
    """It has half a second from its accept; a request that comes in time is answered."""
    async with running(server := on_tcp(handler, min_children=2)):
        async with await connect(server) as silent, await connect(server) as late:
            await until(lambda: len(server.requests) == 2)
            await until(lambda: {it.state for it in server.snapshot().requests} == {"idle"})
            server.shutdown(8)
            await late.send_all(b"late\n")
            began = time.perf_counter()
            assert await read_to_end(late) == b"LATE\n"
            assert await read_to_end(silent) == b""
            assert time.perf_counter() - began < 0.5 + SOON
        report = await server.wait_closed()
    assert [str(it.outcome) for it in report.requests] == ["drained"] * 2


@both("Upper")
async def test_request_that_has_begun_is_finished(stream: Any, handler: Any) -> None:
    """PR-13: however long it takes; half a line was there, the other half comes in the drain."""
    async with running(server := stream(handler)):
        async with await connect(server) as client:
            await say(client, b"one\n")
            await client.send_all(b"tw")
            await until(lambda: server.snapshot().requests[0].bytes_received == 6)
            server.shutdown(8)
            await trio.sleep(0.05)  # so that a wrong end of input would come first
            await client.send_all(b"o\n")
            assert await read_to_end(client) == b"TWO\n"
        report = await server.wait_closed()
    assert [str(it.outcome) for it in report.requests] == ["drained"]
    assert report.clean


@both("slowly")
async def test_queued_clients_are_served(handler: Any) -> None:
    """A drain serves whom the kernel had accepted, one after the other; later ones are refused."""
    server = on_tcp(handler, max_children=1)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve_forever)
            address = server.server_address
            clients = [await connect(server) for _ in range(4)]
            for client in clients:
                await client.send_all(b"me")
            await until(lambda: server.requests)
            server.shutdown(10)
            with pytest.raises(OSError, match="all attempts to connect"):
                await trio.open_tcp_stream(*address)
            for client in clients:
                async with client:
                    assert await read_to_end(client) == b"ME"
        report = await server.wait_closed()
    assert report.clean
    assert report.statistics.accepted == 4
    assert server.active_children == []


@both("does")
async def test_grace_is_over(handler: Any) -> None:
    """PR-13: who still works at the end of the grace is killed, and named in the report."""
    server = on_tcp(handler, timeouts=Timeouts(linger=0))
    async with running(server):
        async with await connect(server) as client:
            await client.send_all(b"sleep")
            assert await client.receive_some() == b"begun."
            began = time.perf_counter()
            server.shutdown(0.1)
            assert await read_to_end(client) == b""
            report = await server.wait_closed()
            assert 0.1 <= time.perf_counter() - began < 0.1 + SOON
    [record] = report.requests
    assert (str(record.outcome), record.reason) == ("killed", "the grace is over")
    assert (record.bytes_received, record.bytes_sent) == (5, 6)
    assert not report.clean


# Time-outs ------------------------------------------------------------------------------


@both("Upper")
async def test_idle_timeout(stream: Any, handler: Any) -> None:
    """A silent client ends its request, and nothing else: the worker serves on."""
    witness = Witness()
    server = stream(handler, observers=[witness], timeouts=Timeouts(idle=0.1))
    async with running(server):
        before = server.active_children
        async with await connect(server) as client:
            await say(client, b"one\n")
            assert await read_to_end(client) == b""
        assert await ask(server, b"two\n") == b"TWO\n"
        assert server.active_children == before
    assert witness.outcomes == ["timed_out", "completed"]
    assert "0.1 s (idle)" in witness.records[0].reason


async def test_line_timeout() -> None:
    """A line that does not end, too (of an asynchronous handler, which knows what a line is)."""
    witness = Witness()
    server = on_tcp(handlers.AsyncUpper, observers=[witness], timeouts=Timeouts(line=0.1))
    async with running(server):
        async with await connect(server) as client:
            await client.send_all(b"x")
            assert await read_to_end(client) == b""
    assert witness.outcomes == ["timed_out"]
    assert "(line)" in witness.records[0].reason


@both("Floods")
async def test_write_timeout(handler: Any) -> None:
    """A client that takes nothing is reset: half a reply does not look like a whole one."""
    witness = Witness()
    timeouts = Timeouts(write=0.1)
    async with running(server := on_tcp(handler, observers=[witness], timeouts=timeouts)):
        before = server.active_children
        async with await connect(server) as client:
            await until(lambda: witness.records)
            with pytest.raises(trio.BrokenResourceError):
                await read_to_end(client)
        assert server.active_children == before
    [record] = witness.records
    assert str(record.outcome) == "timed_out"
    assert "0.1 s (write)" in record.reason
    assert record.bytes_sent > 0


@both("does")
async def test_request_timeout(handler: Any) -> None:
    """Who takes too long is killed; the next one finds a new worker."""
    witness = Witness()
    timeouts = Timeouts(request=1)
    async with running(server := on_tcp(handler, observers=[witness], timeouts=timeouts)):
        [before] = server.active_children
        began = time.perf_counter()
        assert await ask(server, b"sleep") == b"begun."
        assert 1 <= time.perf_counter() - began < 1 + SOON
        pid = int((await ask(server, b"nothing")).removeprefix(b"begun."))
        assert pid != before
        assert server.active_children == [pid]
    assert witness.outcomes == ["killed", "completed"]
    assert witness.records[0].reason == "the request took too long (request)"


# Cancelling --------------------------------------------------------------------------------


@both("does")
async def test_cancel_request(handler: Any) -> None:
    """A request that is cancelled has its worker killed, and that is all."""
    witness = Witness()
    async with running(server := on_tcp(handler, observers=[witness], min_children=2)):
        async with await connect(server) as one, await connect(server) as other:
            for client in (one, other):
                await client.send_all(b"sleep")
                assert await client.receive_some() == b"begun."
            began = time.perf_counter()
            assert server.cancel_request(1, "enough")
            assert await read_to_end(one) == b""
            assert time.perf_counter() - began < SOON
            assert (await ask(server, b"nothing")).startswith(b"begun.")
            await until(lambda: [it.id for it in server.requests] == [2])
            assert server.cancel_request(2, "home time")
            assert await read_to_end(other) == b""
    assert [(str(it.outcome), it.reason) for it in witness.records] == [
        ("killed", "enough"),
        ("completed", ""),
        ("killed", "home time"),
    ]


async def test_handler_cancels_itself() -> None:
    """An asynchronous handler cancels its own scope: ``cancelled``, and its worker lives."""
    witness = Witness()
    async with running(server := on_tcp(handlers.cancels_itself, observers=[witness])):
        before = server.active_children
        for _ in range(2):
            assert await ask(server, b"") == b""
        assert server.active_children == before
    assert [(str(it.outcome), it.reason) for it in witness.records] == [
        ("cancelled", "had enough")
    ] * 2


@both("does")
async def test_outer_scope_is_cancelled(handler: Any) -> None:
    """The program around the server is cancelled: workers and requests are gone at once."""
    witness = Witness()
    with trio.fail_after(10), trio.CancelScope() as outer:
        async with running(server := on_tcp(handler, observers=[witness])):
            async with await connect(server) as client:
                await client.send_all(b"sleep")
                assert await client.receive_some() == b"begun."
                children = server.active_children
                began = time.perf_counter()
                outer.cancel(reason="home time")
                await trio.lowlevel.checkpoint()
    assert time.perf_counter() - began < SOON
    assert witness.outcomes == ["killed"]
    assert not any(is_there(pid) for pid in children)


async def test_idle_workers_are_cancelled_without_a_word(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Workers that end because the program around the server does are not said to crash."""
    with trio.fail_after(10), trio.CancelScope() as outer:
        async with running(on_tcp(handlers.Upper, min_children=2)):
            outer.cancel(reason="home time")
            await trio.lowlevel.checkpoint()
    assert [it.getMessage() for it in caplog.records if it.levelno >= logging.WARNING] == []


@both("Upper")
async def test_handle_request(handler: Any) -> None:
    """``handle_request`` starts one worker for its call, and ends it; or nobody comes."""
    server = handlers.Patient(THERE, handler, timeout=0.05)
    with trio.fail_after(10):
        async with server:
            for count in (1, 2):
                async with await connect(server) as client:
                    await client.send_all(b"one\n")
                    await client.send_eof()
                    await server.handle_request()
                    assert await read_to_end(client) == b"ONE\n"
                assert server.active_children == []
                assert server.statistics().accepted == count
            await server.handle_request()
    assert len(server.waited) == 1


@both("Upper")
async def test_server_serves_twice(handler: Any) -> None:
    """A server serves again after its end, with new workers."""
    server = on_tcp(handler)
    seen = set()
    for _ in range(2):
        async with running(server):
            assert await ask(server, b"one\n") == b"ONE\n"
            seen.update(server.active_children)
        assert server.active_children == []
    assert len(seen) == 2


# Slots -------------------------------------------------------------------------------------


@both("does")
@pytest.mark.parametrize("fields", [{"max_children": 2}, {"limits": Limits(requests=2)}])
async def test_third_client_waits_in_the_kernel(handler: Any, fields: Any) -> None:
    """With two busy workers nobody else is accepted; a slot that falls free is used at once."""
    async with running(server := on_tcp(handler, **{"max_children": 40, **fields})):
        clients = [await connect(server) for _ in range(3)]
        for client in clients:
            await client.send_all(b"sleep")
        for client in clients[:2]:
            assert await client.receive_some() == b"begun."
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert server.statistics().accepted == 2
        assert len(server.active_children) == 2
        server.cancel_request(1, "enough")
        assert await clients[2].receive_some() == b"begun."
        assert len(server.requests) == 2
        server.cancel_request(2, "enough")
        server.cancel_request(3, "enough")
        for client in clients:
            await client.aclose()


async def test_clients_are_refused_in_the_parent() -> None:
    """A ``when_full`` function need not pickle: it is the server's own."""

    async def too_many(connection: trioserver.Connection) -> None:
        await connection.send_all(b"come again")

    limits = Limits(requests=1, when_full=too_many)
    async with running(server := on_tcp(handlers.does, limits=limits)):
        async with await connect(server) as client:
            await client.send_all(b"sleep")
            assert await client.receive_some() == b"begun."
            async with await connect(server) as other:
                assert await read_to_end(other) == b"come again"
            server.cancel_request(1, "enough")
            assert await read_to_end(client) == b""


@both("slowly")
async def test_many_clients_few_workers(handler: Any) -> None:
    """Everybody is served; there are never more workers than there may be."""
    most = 0
    async with running(server := on_tcp(handler, max_children=3)):

        async def asks() -> None:
            nonlocal most
            for _ in range(4):
                assert await ask(server, b"x") == b"X"
                most = max(most, len(server.active_children))

        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(asks)
    assert most == 3
    assert server.active_children == []


# A look from outside ----------------------------------------------------------------------


@both("Upper")
async def test_state_and_bytes_while_it_runs(handler: Any) -> None:
    """A snapshot shows what a handler in another process waits for, and how far it is."""

    def now() -> tuple[str, int, int]:
        [it] = server.snapshot().requests
        return it.state, it.bytes_received, it.bytes_sent

    async with running(server := on_tcp(handler)):
        async with await connect(server) as client:
            await until(lambda: server.requests and now() == ("idle", 0, 0))
            await client.send_all(b"abc")
            await until(lambda: now() == ("reading", 3, 0))
            await client.send_all(b"d\n")
            await until(lambda: now() == ("idle", 5, 5))


@both("Floods")
async def test_writing_shows(handler: Any) -> None:
    """One that waits for room is seen to write."""
    async with running(server := on_tcp(handler)):
        async with await connect(server):
            await until(lambda: server.requests and server.snapshot().requests[0].bytes_sent)
            await until(lambda: server.snapshot().requests[0].state == "writing")
            server.cancel_request(1, "enough")
            await until(lambda: not server.requests)


async def test_log_records_arrive(caplog: pytest.LogCaptureFixture) -> None:
    """What is logged in a worker, its server's loggers get, in the order of things."""
    async with running(server := on_tcp(handlers.does)):
        pid = int((await ask(server, b"log")).removeprefix(b"begun."))
    [record] = caplog.records
    assert (record.name, record.levelname, record.getMessage()) == (
        "app",
        "WARNING",
        "seen in a worker",
    )
    assert record.process == pid


async def test_log_records_arrive_once() -> None:
    """Handlers that a module adds to its own logger get them in the server, and only there."""
    messages = handlers.own_records.messages
    messages.clear()
    async with running(server := on_tcp(handlers.does)):
        assert (await ask(server, b"log-own")).startswith(b"begun.")
        assert await ask(server, b"log-own") != b"begun."  # nothing was kept there
    assert messages == ["seen in a worker"] * 2


async def test_log_record_of_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    """A program may tell `logging` not to note threads and processes: no reason for a kill."""
    async with running(server := on_tcp(handlers.does)):
        [pid] = server.active_children
        assert await ask(server, b"log-nameless") == b"begun.%d" % pid
    [record] = caplog.records
    assert record.getMessage() == "by nobody"


async def test_log_records_of_a_signal_handler(caplog: pytest.LogCaptureFixture) -> None:
    """They arrive, also from the middle of another one, and nobody waits for himself."""
    caplog.set_level(logging.INFO, "app")
    async with running(server := on_tcp(handlers.does)):
        [pid] = server.active_children
        with trio.fail_after(10):
            assert await ask(server, b"log-signal") == b"begun.%d" % pid
    messages = [it.getMessage() for it in caplog.records if it.name == "app"]
    assert messages.count("x" * 1000) == 1000
    assert set(messages) == {"x" * 1000, "in a signal"}


async def test_log_records_of_a_child(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """They do not arrive; warnings go to where those go for which there is no handler."""
    # Not by a fork server, whose stderr may be that of an earlier test.
    async with running(server := on_tcp(handlers.does, start_method="spawn")):
        [pid] = server.active_children
        assert await ask(server, b"log-child") == b"begun.%d" % pid
    assert not caplog.records
    assert capfd.readouterr().err == "seen in a child\n"


# One request and the next --------------------------------------------------------------------


@both("remembers")
async def test_context_variables_are_the_requests_own(handler: Any) -> None:
    """What one client's request has set, the next one's does not see; nor what the server has."""
    handlers.visitor.set(b"the server")
    async with running(server := on_tcp(handler)):
        assert await ask(server, b"first") == b"nobody"
        assert await ask(server, b"second") == b"nobody"


async def test_forked_child_answers(stream: Any) -> None:
    """The classic fork in ``handle``: the child converses, the handler waits for it."""
    async with running(server := stream(handlers.ForksToAnswer)):
        async with await connect(server) as client:
            for _ in range(3):
                await trio.testing.wait_all_tasks_blocked(0.02)  # so that it has to wait
                await say(client, b"one\n")


async def test_thread_that_is_left_tells_nothing_of_the_next_request(tmp_path: Path) -> None:
    """What it does in the middle of that does not show in its record."""
    witness = Witness()
    server = on_tcp(handlers.leaves_a_reader, max_children=1, observers=[witness])
    server.my_path = str(tmp_path)  # type: ignore[attr-defined]
    async with running(server):
        assert await ask(server, b"leave") == b""
        async with await connect(server) as client:
            await client.send_all(b"and another one")
            await until(lambda: [it.id for it in server.requests] == [2])
            await until(lambda: server.snapshot().requests[0].bytes_sent == 6)
            (tmp_path / "now").touch()
            await until((tmp_path / "done").exists)
            assert server.cancel_request(2, "enough")
            await until(lambda: len(witness.records) == 2)
    last = witness.records[-1]
    assert (str(last.outcome), last.bytes_received, last.bytes_sent) == ("killed", 15, 6)


async def test_hook_that_is_set_on_the_object(caplog: pytest.LogCaptureFixture) -> None:
    """It is called here, as hooks are; no worker misses it, and nobody is told so."""
    verified = []

    async def verify_request(request: Any, client_address: Any) -> bool:
        verified.append(request.info.id)
        return True

    server = on_tcp(handlers.Upper)
    server.verify_request = verify_request  # type: ignore[method-assign]
    async with running(server):
        assert await ask(server, b"hello\n") == b"HELLO\n"
    assert verified == [1]
    assert caplog.records == []


# How connections end --------------------------------------------------------------------------


async def ends_without_this_process(server: Any, seconds: float) -> bool:
    """Whether a client sees the end of its connection while nothing goes on here."""
    with plain_client(server.server_address) as client:
        client.sendall(b"hello\n")
        await trio.lowlevel.wait_readable(client)
        assert client.recv(100) == b"HELLO\n"
        client.settimeout(seconds)
        client.shutdown(socket.SHUT_WR)
        try:  # no checkpoint: the server's tasks do not run
            return client.recv(100) == b""
        except TimeoutError:
            return False


async def test_worker_ends_the_output() -> None:
    """A client that waits for the end is told of it by the worker, and leaves one record."""
    witness = Witness()
    async with running(server := on_tcp(handlers.Upper, observers=[witness])):
        for _ in range(3):
            assert await ends_without_this_process(server, seconds=10)
        assert await ask(server, b"hello\n") == b"HELLO\n"
    assert witness.outcomes == ["completed"] * 4


@pytest.mark.parametrize(
    "hook", ["process_request", "finish_request", "shutdown_request", "close_request"]
)
async def test_server_ends_the_output_if_a_hook_could_say_more(
    hook: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an override sends when the handler has returned still reaches the client."""
    is_before_the_end = hook in {"process_request", "finish_request", "shutdown_request"}

    async def says_goodbye(self: Any, request: Any, *rest: Any) -> None:
        if hook == "shutdown_request":
            await request.sendall(b"goodbye\n")
        await getattr(super(handlers.Polite, self), hook)(request, *rest)
        if hook in {"process_request", "finish_request"}:
            await request.sendall(b"goodbye\n")

    monkeypatch.setattr(handlers.Polite, hook, says_goodbye, raising=False)
    async with running(server := handlers.Polite(THERE, handlers.Upper, min_children=1)):
        assert not await ends_without_this_process(server, seconds=0.1)
        goodbye = b"goodbye\n" if is_before_the_end else b""
        assert await ask(server, b"hello\n") == b"HELLO\n" + goodbye


@pytest.mark.parametrize("limits", [Limits(per_client=1), Limits(when_full="refuse")])
async def test_who_comes_again_is_not_refused(limits: Limits) -> None:
    """The end comes after the slot is free, where a limit would refuse the client."""
    async with running(server := on_tcp(handlers.Upper, limits=limits, max_children=1)):
        assert not await ends_without_this_process(server, seconds=0.1)
        await until(lambda: not server.requests)
        for _ in range(20):
            assert await ask(server, b"hello\n") == b"HELLO\n"
    assert server.statistics().refused == 0


# Datagrams -----------------------------------------------------------------------------------


@both("replies")
@pytest.mark.parametrize(
    ("size", "answer"), [(0, b"0 sent from 127.0.0.2"), (60_000, b"60000 sent from 127.0.0.2")]
)
async def test_reply_comes_from_the_address_that_was_asked(
    handler: Any, size: int, answer: bytes
) -> None:
    """On a wildcard bind, too: the server sends it, who knows."""
    server = trioserver.ProcessUDPServer(("0.0.0.0", 0), handler, min_children=1)
    async with running(server) as (_, port):
        with trio.socket.socket(type=socket.SOCK_DGRAM) as client:
            await client.bind(THERE)
            await client.sendto(b"%d" % size, ("127.0.0.2", port))
            assert await client.recvfrom(100_000) == (bytes(size), ("127.0.0.2", port))
            assert await client.recvfrom(100_000) == (answer, ("127.0.0.2", port))


@both("replies")
async def test_reply_that_the_system_refuses(handler: Any) -> None:
    """It is an ``OSError`` in the handler, who can go on; the worker, too."""
    witness = Witness()
    server = trioserver.ProcessUDPServer(THERE, handler, min_children=1, observers=[witness])
    async with running(server):
        assert await ask_by_datagram(server, b"70000") == b"OSError %d" % errno.EMSGSIZE
        assert await ask_by_datagram(server, b"3") == bytes(3)
        await until(lambda: len(witness.records) == 2)
    assert witness.outcomes == ["completed"] * 2


async def test_reply_that_no_frame_holds() -> None:
    """It is refused as any that is too large; its worker goes on."""
    server = trioserver.ProcessUDPServer(THERE, handlers.replies, min_children=1)
    async with running(server):
        [pid] = server.active_children
        for size in (LONGEST_FROM_WORKER, 20_000_000):
            refused = b"OSError %d" % errno.EMSGSIZE
            assert await ask_by_datagram(server, b"%d" % size) == refused
        assert pid in server.active_children


async def test_replies_of_many_threads() -> None:
    """All are sent; each thread gets its own answer, and nobody waits for ever."""
    server = trioserver.ProcessUDPServer(
        THERE, handlers.replies_in_threads, min_children=1, max_children=1
    )
    async with running(server) as address:
        [pid] = server.active_children
        with trio.socket.socket(type=socket.SOCK_DGRAM) as client:
            for _ in range(10):
                await client.sendto(b"", address)
                *some, last = [await client.recv(10) for _ in range(11)]
                assert sorted(some) == [b"%d" % number for number in range(10)]
                assert last == b"all"
        assert server.active_children == [pid]


async def test_reply_after_the_end(tmp_path: Path) -> None:
    """A thread that is left behind cannot send, nor take what comes for the next request."""
    witness = Witness()
    server = trioserver.ProcessUDPServer(
        THERE, handlers.replies_too_late, min_children=1, max_children=1, observers=[witness]
    )
    path = tmp_path / "now"
    server.my_path = str(path)  # type: ignore[attr-defined]
    async with running(server):
        [pid] = server.active_children
        assert await ask_by_datagram(server, b"late") == b"late"
        await until(lambda: witness.records)
        path.touch()
        await until(path.read_text)
        assert path.read_text() == "the request is over, and its way back is closed"
        for number in range(3):
            assert await ask_by_datagram(server, b"%d" % number) == b"%d" % number
        assert server.active_children == [pid]
    assert witness.outcomes == ["completed"] * 4


async def test_handler_gives_a_reply_up(folder: Path) -> None:
    """A signal handler raises in the wait for it: its answer is not taken for another one's."""
    witness = Witness()
    path = str(folder / "server")
    server = trioserver.ProcessUnixDatagramServer(
        *(path, handlers.gives_up_a_reply),
        min_children=1,
        max_children=1,
        observers=[witness],
        timeouts=Timeouts(write=0.5),
    )
    async with running(server):
        [pid] = server.active_children
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            await client.bind(str(folder / "client"))
            await client.sendto(b"give up", path)
            await until(lambda: witness.records)
        assert await ask_by_datagram(server, b"next") == b"next"
        assert server.active_children == [pid]


@both("misaddresses")
async def test_reply_to_an_address_that_is_none(handler: Any) -> None:
    """It is the handler's error, of the same kind as in the other modes."""
    server = trioserver.ProcessUDPServer(THERE, handler, min_children=1)
    async with running(server):
        answer = await ask_by_datagram(server, b"hello")
    assert answer.startswith(b"OverflowError(")


async def test_default_timeout_of_all_sockets_in_a_worker() -> None:
    """``socket.setdefaulttimeout`` in a worker is for its synchronous handlers, as in threads."""
    init = handlers.init_default_timeout
    async with running(server := on_tcp(handlers.says_its_timeout, child_init=init)):
        assert await ask(server, b"") == b"7.0"


@both("says_where_from")
async def test_address_that_get_request_has_made_up(handler: Any) -> None:
    """What pickles comes as it is; what does not is that request's error, and no worker's."""
    witness = Witness()
    server = handlers.MadeUp(THERE, handler, min_children=1, max_children=1, observers=[witness])
    async with running(server):
        pids = server.active_children
        for server.made_up in [((1, 2), "more"), (), [1], None]:
            assert await ask(server, b"") == repr(server.made_up).encode()
        server.made_up = threading.Lock()
        assert await ask(server, b"") == b""
        server.made_up = "the next one"
        assert await ask(server, b"") == b"'the next one'"
        assert server.active_children == pids
    assert witness.outcomes == [*["completed"] * 4, "failed", "completed"]
    assert "does not pickle, so no worker process can have it" in witness.records[4].reason


@both("replies_twice")
async def test_client_of_a_datagram_is_gone(folder: Path, handler: Any) -> None:
    """A reply to nobody is the client's doing: ``disconnected``; the next one is served."""
    witness = Witness()
    path = str(folder / "server")
    server = trioserver.ProcessUnixDatagramServer(
        path, handler, min_children=1, observers=[witness]
    )
    here, gone = folder / "client", folder / "gone"
    async with running(server):
        before = server.active_children
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            await client.bind(str(here))
            await client.sendto(os.fsencode(gone), path)
            assert await client.recv(1000) == os.fsencode(gone)
            here.unlink()
        gone.touch()
        await until(lambda: witness.records)
        assert await _asks_twice(folder, path) == 2
        await until(lambda: len(witness.records) == 2)
        assert server.active_children == before
    assert witness.outcomes == ["disconnected", "completed"]


async def _asks_twice(folder: Path, path: str) -> int:
    """How many replies a client gets that stays."""
    here = folder / "client-2"
    with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        await client.bind(str(here))
        await client.sendto(os.fsencode(folder), path)
        return len([await client.recv(1000) for _ in range(2)])


@both("replies_without_end")
async def test_client_of_a_datagram_takes_nothing(folder: Path, handler: Any) -> None:
    """Its queue is full for longer than ``Timeouts.write``: ``timed_out``; the worker lives."""
    witness = Witness()
    path = str(folder / "server")
    server = trioserver.ProcessUnixDatagramServer(
        path, handler, min_children=1, observers=[witness], timeouts=Timeouts(write=0.1)
    )
    async with running(server):
        before = server.active_children
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            await client.bind(str(folder / "client"))
            await client.sendto(b"hello", path)
            await until(lambda: witness.records)
        assert server.active_children == before
    [record] = witness.records
    assert str(record.outcome) == "timed_out"
    assert "(write)" in record.reason
    assert record.bytes_sent >= 5


@both("replies_without_end")
async def test_datagram_is_cancelled_in_a_reply(folder: Path, handler: Any) -> None:
    """A worker that waits for its reply to be sent is killed as any other."""
    witness = Witness()
    path = str(folder / "server")
    server = trioserver.ProcessUnixDatagramServer(
        path, handler, min_children=1, observers=[witness]
    )
    async with running(server):
        with trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            await client.bind(str(folder / "client"))
            await client.sendto(b"hello", path)
            await until(lambda: server.requests and server.snapshot().requests[0].bytes_sent)
            assert server.cancel_request(1, "enough")
            await until(lambda: witness.records)
    assert [(str(it.outcome), it.reason) for it in witness.records] == [("killed", "enough")]


# Drains that come early ----------------------------------------------------------------------


@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_shut_down_while_workers_start(when: str, tmp_path: Path) -> None:
    """They have as long as the grace; if that is over, there is nobody to be served."""
    gate = tmp_path / "open"
    server = on_tcp(handlers.Upper, child_init=partial(handlers.init_waits_for, str(gate)))
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery, server:
            run = server._run
            assert run is not None
            began = time.perf_counter()
            if when == "before":
                server.shutdown(0.2)
            else:
                nursery.start_soon(_shut_down_when, lambda: run.serving, server)
            assert await nursery.start(server.serve_forever) is server
            await run.work.wait_over()
            assert 0.2 <= time.perf_counter() - began < 0.2 + SOON
            await until(lambda: run.report)
    assert run.report is not None
    assert run.report.reason == "shutdown() was called"
    assert server.active_children == []


async def _shut_down_when(condition: Callable[[], object], server: trioserver.BaseServer) -> None:
    await until(condition)
    server.shutdown(0.2)


async def test_queued_clients_are_served_by_workers_that_start(tmp_path: Path) -> None:
    """If they are ready within the grace."""
    gate = tmp_path / "open"
    server = on_tcp(handlers.Upper, child_init=partial(handlers.init_waits_for, str(gate)))
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery, server:
            async with await connect(server) as client:
                await client.send_all(b"hello\n")
                server.shutdown(10)
                nursery.start_soon(server.serve_forever)
                await until(lambda: server._run is not None and server._run.serving)
                gate.touch()
                assert await read_to_end(client) == b"HELLO\n"


async def test_closed_while_workers_start(tmp_path: Path) -> None:
    """To leave the block drains, and this is a drain as any other."""
    gate = tmp_path / "open"
    server = on_tcp(
        handlers.Upper,
        child_init=partial(handlers.init_waits_for, str(gate)),
        timeouts=Timeouts(shutdown=0.2),
    )
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery, server:
            nursery.start_soon(server.serve_forever)
            await until(lambda: server._run is not None and server._run.serving)
            began = time.perf_counter()
            await server.server_close()
            assert time.perf_counter() - began < 0.2 + SOON


async def test_handle_request_is_shut_down_while_its_worker_starts(tmp_path: Path) -> None:
    """It returns, and nobody has waited in vain."""
    gate = tmp_path / "open"
    init = partial(handlers.init_waits_for, str(gate))
    server = handlers.Patient(THERE, handlers.Upper, child_init=init)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery, server:
            nursery.start_soon(_shut_down_when, lambda: server._run.serving, server)
            began = time.perf_counter()
            await server.handle_request()
            assert time.perf_counter() - began < 0.2 + SOON
    assert server.waited == []
