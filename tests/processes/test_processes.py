"""Handlers in worker processes: on every kind of socket, of either colour."""

import errno
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from support import connect, plain_client, read_to_end, running, until
from support import process_handlers as handlers
from support.processes import (
    SOON,
    both,
    busy,
    is_served,
    is_there,
    met_by_datagram,
    on_tcp,
    on_udp,
)
from support.scenes import table
from support.threads import (
    THERE,
    ask,
    ask_by_datagram,
    drained,
    met,
    of_both_families,
    outcomes,
    say,
    shows,
    takes,
    witnessed,
)

import trioserver
from trioserver import HandlerFailed, Limits, Timeouts
from trioserver._modes.processes.protocol.frames import LONGEST_FROM_WORKER

stream = of_both_families(
    trioserver.ProcessTCPServer, trioserver.ProcessUnixStreamServer, min_children=1
)
datagram = of_both_families(
    trioserver.ProcessUDPServer, trioserver.ProcessUnixDatagramServer, min_children=1
)

# What runs where ------------------------------------------------------------------


@both("Upper")
async def test_stream_handler(stream, handler):
    """`socketserver`'s handlers and asynchronous ones work as they are, with exact records.

    Megabytes pass both ways, too.
    """
    lines = b"".join(b"%d %s\n" % (number, b"x" * 1000) for number in range(3000))
    async with witnessed(server := stream(handler)) as witness:
        for _ in range(3):
            assert await ask(server, b"one\ntwo\n") == b"ONE\nTWO\n"
        async with await connect(server) as client, trio.open_nursery() as nursery:

            async def sends():
                await client.send_all(lines)
                await client.send_eof()

            nursery.start_soon(sends)
            assert await read_to_end(client) == lines.upper()
    assert witness.outcomes == ["completed"] * 4
    sizes = [(it.bytes_received, it.bytes_sent) for it in witness.records]
    assert sizes == [(8, 8)] * 3 + [(len(lines),) * 2]
    assert {it.info.mode for it in witness.records} == {"process"}


@both("Back")
async def test_datagram_handler(datagram, handler):
    """The same for datagrams."""
    async with witnessed(server := datagram(handler)) as witness:
        for _ in range(3):
            assert await ask_by_datagram(server, b"hello") == b"olleh"
        await until(lambda: len(witness.records) == 3)
    assert witness.outcomes == ["completed"] * 3
    assert {(it.bytes_received, it.bytes_sent) for it in witness.records} == {(5, 5)}
    assert {it.info.mode for it in witness.records} == {"process"}


@both("tells")
async def test_what_a_handler_sees(handler, caplog):
    """A copy of the server, the server's own info of its request, and what ``child_init`` did."""
    server = on_tcp(
        handler, handlers.Greeting, greeting="hi", max_children=1, child_init=handlers.init
    )
    server.my_colour, server.my_lock = "red", lambda: None
    async with witnessed(server) as witness:
        told = [json.loads(await ask(server, b"")) for _ in range(2)]
        address = list(server.server_address)
    first, second = told
    infos = [record.info for record in witness.records]
    assert [it["request"] for it in told] == [[it.id, str(it), "process"] for it in infos]
    assert [tuple(it["client_address"]) for it in told] == [it.client_address for it in infos]
    # Its class, its fields, its bound address, the user's own attributes; but unbound.
    assert (first["server"], first["greeting"]) == ("Greeting", "hi")
    assert first["server_address"] == address
    assert (first["observers"], first["is_bound"]) == (0, False)
    assert first["blocks"] == (True if handler is handlers.tells else None)
    # One copy a worker, and what a handler changes there stays there.
    assert second["pid"] == first["pid"] != os.getpid()
    assert first["own"] == {"my_colour": "red"}
    assert second["own"] == {"my_colour": "red", "my_visits": 1}
    assert not hasattr(server, "my_visits")
    assert [it["init"] for it in told] == [f"ran in {it['pid']}" for it in told]
    assert "PROCESS_HANDLERS_INIT" not in os.environ
    # What does not pickle is left out, with a warning each.
    [record] = caplog.records
    assert (record.name, record.levelname) == ("trioserver.error", "WARNING")
    assert "do not have Greeting.my_lock, which does not pickle" in record.getMessage()
    assert callable(server.my_lock)


async def test_hooks_run_in_the_parent():
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
async def test_input_read_ahead_is_not_lost(handler):
    """What a hook has received and not used goes on to the worker; all is counted."""
    async with witnessed(server := on_tcp(handler, handlers.Greets)) as witness:
        assert await ask(server, b"hello\none\ntwo\n") == b"welcome\nONE\nTWO\n"
    [record] = witness.records
    assert (record.bytes_received, record.bytes_sent) == (14, 16)


@both("closes_early")
async def test_handler_that_closes(stream, handler, tmp_path):
    """Its client is told at once, however long it then goes on."""
    server = stream(handler)
    server.my_path = str(tmp_path / "enough")
    async with met(server) as (client, witness):
        await shows(server, state="writing")
        assert len(await read_to_end(client)) == 20_000_000
        # Else a kill were one in a write.
        await shows(server, state="working", bytes_sent=20_000_000)
        (tmp_path / "enough").touch()
        await until(lambda: witness.records)
    assert witness.outcomes == ["completed"]


@table(
    ("handler", "answers"),
    {
        "a handler closes the descriptor, which is its own": (handlers.makes_a_file, ["{pid}"]),
        "it forks, and the child converses, while it waits": (handlers.ForksToAnswer, ["ASK\n"]),
        "what a request sets in its context, the next one does not see": (
            *(handlers.remembers, ["nobody"] * 2),
        ),
    },
)
async def test_worker_that_goes_on(stream, handler, answers):
    """There is no reason for it to end."""
    async with witnessed(server := stream(handler, max_children=1)) as witness:
        pids = server.active_children
        for answer in answers:
            assert await ask(server, b"ask\n") == answer.format(pid=pids[0]).encode()
        assert server.active_children == pids
    assert set(witness.outcomes) == {"completed"}


async def test_default_timeout_of_all_sockets_in_a_worker():
    """``socket.setdefaulttimeout`` in a worker is for its synchronous handlers, as in threads."""
    init = partial(socket.setdefaulttimeout, 7)
    async with running(server := on_tcp(handlers.says_its_timeout, child_init=init)):
        assert await ask(server, b"") == b"7.0"


# Errors ---------------------------------------------------------------------------------


@both("does")
@table(
    ("deed", "told"),
    {
        "PR-11: an exception ends its request, and not its worker": (
            *("error", "ValueError: on purpose"),
        ),
        "PR-11: errors travel as text, so that none is a problem": (
            *("unpicklable", "Unpicklable: cannot travel"),
        ),
        "PR-11: also one whose traceback cannot be made": ("unshowable", "Unshowable"),
        "PR-11: or is endless": ("deep", "ValueError: on purpose"),
        "EX-11: raised by hand, GeneratorExit is a mistake of the handler's": (
            *("generator-exit", "RuntimeError: a handler or hook raised GeneratorExit"),
        ),
    },
)
async def test_error_in_a_handler(handler, deed, told, caplog):
    """It is a ``HandlerFailed`` with the worker's traceback; the worker serves on."""
    caplog.set_level(logging.ERROR)
    async with witnessed(server := on_tcp(handler)) as witness:
        [pid] = server.active_children
        assert await ask(server, deed.encode()) == b"begun."
        assert await is_served(server) == pid
        assert server.active_children == [pid]
    assert witness.outcomes == ["failed", "completed"]
    failed = witness.records[0]
    assert failed.reason == f"HandlerFailed: {told}"
    assert (failed.bytes_received, failed.bytes_sent) == (len(deed), 6)
    [record] = caplog.records
    assert record.exc_info is not None
    error = record.exc_info[1]
    assert isinstance(error, HandlerFailed)
    assert str(error) == told
    if deed == "error":
        assert "in _fails\n    raise kind(*facts)" in str(error.__cause__)
        assert "in _fails\n    raise kind(*facts)" in caplog.text
    elif handler is handlers.does:
        assert "in does" in str(error.__cause__)


@both("does")
async def test_handle_error_is_called_with_it(handler):
    """``handle_error`` finds the error as `sys.exception`, as ever."""
    server = handlers.Erring(THERE, handler, min_children=1)
    async with running(server):
        assert await ask(server, b"error") == b"begun."
    [error] = server.errors
    assert isinstance(error, HandlerFailed)
    assert "ValueError: on purpose" in str(error.__cause__)


@both("does")
async def test_first_error_is_never_lost(handler, caplog):
    """A ``handle_error`` that fails, and hides what it was told of, has both of them logged."""
    async with running(server := on_tcp(handler, handlers.Hides)):
        assert await ask(server, b"error") == b"begun."
    for text in (
        "HandlerFailed: ValueError: on purpose",
        "in _fails\n",
        "RuntimeError: the second",
    ):
        assert text in caplog.text


def test_system_that_cannot_pass_descriptors(monkeypatch):
    """PR-15: it is refused when the server is built."""
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(NotImplementedError, match="worker processes need POSIX"):
        on_tcp(handlers.Upper)


async def _init_async(): ...


def _init_yields():
    yield


NO_INIT = "child_init must be a plain function without arguments"


@pytest.mark.parametrize(
    ("make", "handler", "fields", "message"),
    [
        (on_tcp, handlers.Back, {}, "serves datagrams"),
        (on_tcp, handlers.AsyncBack, {}, "serves datagrams"),
        (on_udp, handlers.Upper, {}, "serves connections"),
        (on_tcp, handlers.Upper, {"child_init": 5}, NO_INIT),
        (on_tcp, handlers.Upper, {"child_init": _init_async}, NO_INIT),
        (on_tcp, handlers.Upper, {"child_init": _init_yields}, NO_INIT),
        (on_tcp, handlers.Upper, {"child_init": lambda server: None}, NO_INIT),
        (on_tcp, handlers.Upper, {"start_method": "fork"}, "'forkserver' or 'spawn'.*'fork'"),
    ],
)
def test_refused_at_once(make, handler, fields, message):
    """What can be told is told when the server is built; nothing forks a running loop."""
    with pytest.raises((TypeError, ValueError), match=message):
        make(handler, **fields)


@both("Upper")
async def test_client_that_resets(handler, caplog):
    """A client that goes away is nobody's error: ``disconnected``, and no traceback."""
    async with witnessed(server := on_tcp(handler)) as witness:
        async with await connect(server) as client:
            await say(client, b"one\n")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await until(lambda: witness.records)
        assert await ask(server, b"two\n") == b"TWO\n"
    assert witness.outcomes == ["disconnected", "completed"]
    assert not [it for it in caplog.records if it.levelno > logging.INFO]


# Drains ---------------------------------------------------------------------------------


@both("Upper")
async def test_wait_between_two_requests_ends_at_once(stream, handler):
    """A drain ends it, and the request is ``drained``."""
    async with met(server := stream(handler)) as (client, _):
        for _ in range(3):
            await say(client, b"one\n")
        await shows(server, state="idle")
        with takes(SOON):
            await drained(server)
        assert await read_to_end(client) == b""
    report = await server.wait_closed()
    assert outcomes(report) == ["drained"]
    assert [(it.bytes_received, it.bytes_sent) for it in report.requests] == [(12, 12)]
    assert report.clean


@pytest.mark.slow
@both("Upper")
async def test_connection_that_never_said_a_byte(handler):
    """It has half a second from its accept; a request that comes in time is answered."""
    async with met(server := on_tcp(handler, min_children=2)) as (silent, witness):
        async with await connect(server) as late:
            await until(lambda: [it.state for it in server.snapshot().requests] == ["idle"] * 2)
            server.shutdown(8)
            await late.send_all(b"late\n")
            with takes(0.5 + SOON):
                assert await read_to_end(late) == b"LATE\n"
                assert await read_to_end(silent) == b""
    assert witness.outcomes == ["drained"] * 2


@both("Upper")
async def test_request_that_has_begun_is_finished(stream, handler):
    """PR-13: however long it takes; half a line was there, the other half comes in the drain."""
    async with met(server := stream(handler)) as (client, _):
        await say(client, b"one\n")
        await client.send_all(b"tw")
        await shows(server, bytes_received=6)
        server.shutdown(8)
        await trio.sleep(0.05)  # so that a wrong end of input would come first
        await client.send_all(b"o\n")
        assert await read_to_end(client) == b"TWO\n"
    report = await server.wait_closed()
    assert outcomes(report) == ["drained"]
    assert report.clean


@both("slowly")
async def test_queued_clients_are_served(handler):
    """A drain serves whom the kernel had accepted, one after the other; later ones are refused."""
    async with running(server := on_tcp(handler, max_children=1)) as address:
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
async def test_grace_is_over(handler):
    """PR-13: who still works at the end of the grace is killed, and named in the report."""
    server = on_tcp(handler, timeouts=Timeouts(linger=0))
    async with running(server), busy(server) as client:
        with takes(0.1 + SOON, least=0.1):
            server.shutdown(0.1)
            assert await read_to_end(client) == b""
            report = await server.wait_closed()
    [record] = report.requests
    assert (str(record.outcome), record.reason) == ("killed", "the grace is over")
    assert (record.bytes_received, record.bytes_sent) == (5, 6)
    assert not report.clean


# Time-outs ------------------------------------------------------------------------------


@table(
    ("handler", "says", "answer", "timeouts", "reason"),
    {
        "a silent client": (handlers.Upper, b"x\n", b"X\n", Timeouts(idle=0.1), "0.1 s (idle)"),
        "one of an asynchronous handler": (
            *(handlers.AsyncUpper, b"x\n", b"X\n", Timeouts(idle=0.1), "0.1 s (idle)"),
        ),
        "a line that does not end, for a handler that knows what a line is": (
            *(handlers.AsyncUpper, b"x", b"", Timeouts(line=0.1), "(line)"),
        ),
    },
)
async def test_silent_client(stream, handler, says, answer, timeouts, reason):
    """It ends its request, and nothing else: the worker serves on."""
    async with witnessed(server := stream(handler, timeouts=timeouts)) as witness:
        before = server.active_children
        async with await connect(server) as client:
            await client.send_all(says)
            assert await read_to_end(client) == answer
        assert await ask(server, b"two\n") == b"TWO\n"
        assert server.active_children == before
    assert witness.outcomes == ["timed_out", "completed"]
    assert reason in witness.records[0].reason


@both("Floods")
async def test_write_timeout(handler):
    """A client that takes nothing is reset: half a reply does not look like a whole one."""
    async with met(server := on_tcp(handler, timeouts=Timeouts(write=0.1))) as (client, witness):
        before = server.active_children
        await until(lambda: witness.records)
        with pytest.raises(trio.BrokenResourceError):
            await read_to_end(client)
        assert server.active_children == before
    [record] = witness.records
    assert str(record.outcome) == "timed_out"
    assert "0.1 s (write)" in record.reason
    assert record.bytes_sent > 0


@pytest.mark.slow
@both("does")
async def test_request_timeout(handler):
    """Who takes too long is killed; the next one finds a new worker."""
    async with witnessed(server := on_tcp(handler, timeouts=Timeouts(request=1))) as witness:
        [before] = server.active_children
        with takes(1 + SOON, least=1):
            assert await ask(server, b"sleep") == b"begun."
        pid = await is_served(server)
        assert pid != before
        assert server.active_children == [pid]
    assert witness.outcomes == ["killed", "completed"]
    assert witness.records[0].reason == "the request took too long (request)"


# Cancelling --------------------------------------------------------------------------------


@both("does")
async def test_cancel_request(handler):
    """A request that is cancelled has its worker killed, and that is all."""
    async with witnessed(server := on_tcp(handler, min_children=2)) as witness:
        async with busy(server) as one, busy(server) as other:
            with takes(SOON):
                assert server.cancel_request(1, "enough")
                assert await read_to_end(one) == b""
            await is_served(server)
            await until(lambda: [it.id for it in server.requests] == [2])
            assert server.cancel_request(2, "home time")
            assert await read_to_end(other) == b""
    assert [(str(it.outcome), it.reason) for it in witness.records] == [
        ("killed", "enough"),
        ("completed", ""),
        ("killed", "home time"),
    ]


async def test_handler_cancels_itself():
    """An asynchronous handler cancels its own scope: ``cancelled``, and its worker lives."""
    async with witnessed(server := on_tcp(handlers.cancels_itself)) as witness:
        before = server.active_children
        for _ in range(2):
            assert await ask(server, b"") == b""
        assert server.active_children == before
    ends = [(str(it.outcome), it.reason) for it in witness.records]
    assert ends == [("cancelled", "had enough")] * 2


@both("does")
async def test_outer_scope_is_cancelled(handler):
    """The program around the server is cancelled: workers and requests are gone at once."""
    with trio.CancelScope() as outer:
        async with witnessed(server := on_tcp(handler)) as witness, busy(server):
            children = server.active_children
            began = time.perf_counter()
            outer.cancel(reason="home time")
            await trio.lowlevel.checkpoint()
    assert time.perf_counter() - began < SOON
    assert witness.outcomes == ["killed"]
    assert not any(is_there(pid) for pid in children)


async def test_idle_workers_are_cancelled_without_a_word(
    caplog,
):
    """Workers that end because the program around the server does are not said to crash."""
    with trio.CancelScope() as outer:
        async with running(on_tcp(handlers.Upper, min_children=2)):
            outer.cancel(reason="home time")
            await trio.lowlevel.checkpoint()
    assert [it.getMessage() for it in caplog.records if it.levelno >= logging.WARNING] == []


@both("Upper")
async def test_handle_request(handler):
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
async def test_server_serves_twice(handler):
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
async def test_third_client_waits_in_the_kernel(handler, fields):
    """With two busy workers nobody else is accepted; a slot that falls free is used at once."""
    server = on_tcp(handler, **{"max_children": 40, **fields})
    async with running(server), busy(server), busy(server), await connect(server) as third:
        await third.send_all(b"sleep")
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert server.statistics().accepted == 2
        assert len(server.active_children) == 2
        server.cancel_request(1, "enough")
        assert await third.receive_some() == b"begun."
        assert len(server.requests) == 2
        server.cancel_request(2, "enough")
        server.cancel_request(3, "enough")


async def test_clients_are_refused_in_the_parent():
    """A ``when_full`` function need not pickle: it is the server's own."""

    async def too_many(connection):
        await connection.send_all(b"come again")

    server = on_tcp(handlers.does, limits=Limits(requests=1, when_full=too_many))
    async with running(server), busy(server) as client:
        async with await connect(server) as other:
            assert await read_to_end(other) == b"come again"
        server.cancel_request(1, "enough")
        assert await read_to_end(client) == b""


@both("slowly")
async def test_many_clients_few_workers(handler):
    """Everybody is served; there are never more workers than there may be."""
    most = 0
    async with running(server := on_tcp(handler, max_children=3)):

        async def asks():
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
async def test_state_and_bytes_while_it_runs(handler):
    """A snapshot shows what a handler in another process waits for, and how far it is."""
    async with met(server := on_tcp(handler)) as (client, _):
        await shows(server, state="idle", bytes_received=0, bytes_sent=0)
        await client.send_all(b"abc")
        await shows(server, state="reading", bytes_received=3, bytes_sent=0)
        await client.send_all(b"d\n")
        await shows(server, state="idle", bytes_received=5, bytes_sent=5)


@table(
    ("deed", "logged"),
    {
        "what is logged in a worker, its server's loggers get": (
            *(b"log", [("WARNING", "seen in a worker")]),
        ),
        "a program may tell logging not to note threads and processes": (
            *(b"log-nameless", [("WARNING", "by nobody")]),
        ),
        "what a child of a worker logs does not arrive": (b"log-child", []),
        "a module's own handlers get records here, and only here": (b"log-own", []),
    },
)
async def test_log_records(
    deed,
    logged,
    caplog,
    capfd,
):
    """They arrive, once, and their worker serves on."""
    handlers.own_records.messages.clear()
    # Not by a fork server, whose stderr may be that of an earlier test.
    async with running(server := on_tcp(handlers.does, start_method="spawn")):
        [pid] = server.active_children
        for _ in range(2):
            assert await ask(server, deed) == b"begun.%d" % pid
    records = [it for it in caplog.records if it.name == "app"]
    assert [(it.levelname, it.getMessage()) for it in records] == logged * 2
    assert {it.process for it in records} <= {0 if deed == b"log-nameless" else pid}
    # A warning goes to where those go for which there is no handler.
    assert capfd.readouterr().err == "seen in a child\n" * 2 * (deed == b"log-child")
    assert handlers.own_records.messages == ["seen in a worker"] * 2 * (deed == b"log-own")


async def test_log_records_of_a_signal_handler(caplog):
    """They arrive, also from the middle of another one, and nobody waits for himself."""
    caplog.set_level(logging.INFO, "app")
    async with running(server := on_tcp(handlers.does)):
        [pid] = server.active_children
        with trio.fail_after(10):
            assert await ask(server, b"log-signal") == b"begun.%d" % pid
    messages = [it.getMessage() for it in caplog.records if it.name == "app"]
    assert messages.count("x" * 1000) == 1000
    assert set(messages) == {"x" * 1000, "in a signal"}


# One request and the next --------------------------------------------------------------------


@both("remembers")
async def test_context_variables_are_the_requests_own(handler):
    """What one client's request has set, the next one's does not see; nor what the server has."""
    handlers.visitor.set(b"the server")
    async with running(server := on_tcp(handler)):
        assert await ask(server, b"first") == b"nobody"
        assert await ask(server, b"second") == b"nobody"


async def test_forked_child_answers(stream):
    """The classic fork in ``handle``: the child converses, the handler waits for it."""
    async with met(stream(handlers.ForksToAnswer)) as (client, _):
        for _ in range(3):
            await trio.testing.wait_all_tasks_blocked(0.02)  # so that it has to wait
            await say(client, b"one\n")


async def test_thread_that_is_left_tells_nothing_of_the_next_request(tmp_path):
    """What it does in the middle of that does not show in its record."""
    server = on_tcp(handlers.leaves_a_reader, max_children=1)
    server.my_path = str(tmp_path)
    async with witnessed(server) as witness:
        assert await ask(server, b"leave") == b""
        async with await connect(server) as client:
            await client.send_all(b"and another one")
            await until(lambda: [it.id for it in server.requests] == [2])
            await shows(server, bytes_sent=6)
            (tmp_path / "now").touch()
            await until((tmp_path / "done").exists)
            assert server.cancel_request(2, "enough")
            await until(lambda: len(witness.records) == 2)
    last = witness.records[-1]
    assert (str(last.outcome), last.bytes_received, last.bytes_sent) == ("killed", 15, 6)


async def test_hook_that_is_set_on_the_object(caplog):
    """It is called here, as hooks are; no worker misses it, and nobody is told so."""
    verified = []

    async def verify_request(request, client_address):
        verified.append(request.info.id)
        return True

    server = on_tcp(handlers.Upper)
    server.verify_request = verify_request
    async with running(server):
        assert await ask(server, b"hello\n") == b"HELLO\n"
    assert verified == [1]
    assert caplog.records == []


# How connections end --------------------------------------------------------------------------


async def ends_without_this_process(server, seconds):
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


async def test_worker_ends_the_output():
    """A client that waits for the end is told of it by the worker, and leaves one record."""
    async with witnessed(server := on_tcp(handlers.Upper)) as witness:
        for _ in range(3):
            assert await ends_without_this_process(server, seconds=10)
        assert await ask(server, b"hello\n") == b"HELLO\n"
    assert witness.outcomes == ["completed"] * 4


@pytest.mark.parametrize(
    ("hook", "goodbye"),
    [
        ("process_request", b"goodbye\n"),
        ("finish_request", b"goodbye\n"),
        ("shutdown_request", b"goodbye\n"),
        ("close_request", b""),
    ],
)
async def test_server_ends_the_output_if_a_hook_could_say_more(hook, goodbye):
    """What an override sends when the handler has returned still reaches the client."""

    async def says_goodbye(self, request, *rest):
        if hook == "shutdown_request":
            await request.sendall(goodbye)
        await getattr(super(handlers.Polite, self), hook)(request, *rest)
        if hook in {"process_request", "finish_request"}:
            await request.sendall(goodbye)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(handlers.Polite, hook, says_goodbye, raising=False)
        async with running(server := on_tcp(handlers.Upper, handlers.Polite)):
            assert not await ends_without_this_process(server, seconds=0.1)
            assert await ask(server, b"hello\n") == b"HELLO\n" + goodbye


@pytest.mark.parametrize("limits", [Limits(per_client=1), Limits(when_full="refuse")])
async def test_who_comes_again_is_not_refused(limits):
    """The end comes after the slot is free, where a limit would refuse the client."""
    async with running(server := on_tcp(handlers.Upper, limits=limits, max_children=1)):
        assert not await ends_without_this_process(server, seconds=0.1)
        await until(lambda: not server.requests)
        for _ in range(20):
            assert await ask(server, b"hello\n") == b"HELLO\n"
    assert server.statistics().refused == 0


@both("says_where_from")
async def test_address_that_get_request_has_made_up(handler):
    """What pickles comes as it is; what does not is that request's error, and no worker's."""
    server = on_tcp(handler, handlers.MadeUp, max_children=1)
    async with witnessed(server) as witness:
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


# Datagrams -----------------------------------------------------------------------------------


@both("replies")
async def test_reply_comes_from_the_address_that_was_asked(handler):
    """On a wildcard bind, too: the server sends it, who knows."""
    server = trioserver.ProcessUDPServer(("0.0.0.0", 0), handler, min_children=1)
    async with running(server) as (_, port):
        with trio.socket.socket(type=socket.SOCK_DGRAM) as client:
            await client.bind(THERE)
            for size in (0, 60_000):
                await client.sendto(b"%d" % size, ("127.0.0.2", port))
                for answer in (bytes(size), b"%d sent from 127.0.0.2" % size):
                    assert await client.recvfrom(100_000) == (answer, ("127.0.0.2", port))


@both("replies")
async def test_reply_that_is_too_large(handler):
    """For the system, or for any frame: an ``OSError`` in the handler; its worker goes on."""
    async with witnessed(server := on_udp(handler)) as witness:
        pids = server.active_children
        for size in (70_000, LONGEST_FROM_WORKER, 20_000_000):
            refused = b"OSError %d" % errno.EMSGSIZE
            assert await ask_by_datagram(server, b"%d" % size) == refused
        assert await ask_by_datagram(server, b"3") == bytes(3)
        await until(lambda: len(witness.records) == 4)
        assert server.active_children == pids
    assert witness.outcomes == ["completed"] * 4


@both("misaddresses")
async def test_reply_to_an_address_that_is_none(handler):
    """It is the handler's error, of the same kind as in the other modes."""
    async with running(server := on_udp(handler)):
        assert (await ask_by_datagram(server, b"hello")).startswith(b"OverflowError(")


async def test_replies_of_many_threads():
    """All are sent; each thread gets its own answer, and nobody waits for ever."""
    async with running(server := on_udp(handlers.replies_in_threads)) as address:
        pids = server.active_children
        with trio.socket.socket(type=socket.SOCK_DGRAM) as client:
            for _ in range(10):
                await client.sendto(b"", address)
                *some, last = [await client.recv(10) for _ in range(11)]
                assert sorted(some) == [b"%d" % number for number in range(10)]
                assert last == b"all"
        assert server.active_children == pids


async def test_reply_after_the_end(tmp_path):
    """A thread that is left behind cannot send, nor take what comes for the next request."""
    server = on_udp(handlers.replies_too_late)
    path = tmp_path / "now"
    server.my_path = str(path)
    async with witnessed(server) as witness:
        pids = server.active_children
        assert await ask_by_datagram(server, b"late") == b"late"
        await until(lambda: witness.records)
        path.touch()
        await until(path.read_text)
        assert path.read_text() == "the request is over, and its way back is closed"
        for number in range(3):
            assert await ask_by_datagram(server, b"%d" % number) == b"%d" % number
        assert server.active_children == pids
    assert witness.outcomes == ["completed"] * 4


@pytest.mark.slow
async def test_handler_gives_a_reply_up(folder):
    """A signal handler raises in the wait for it: its answer is not taken for another one's."""
    handler, timeouts = handlers.gives_up_a_reply, Timeouts(write=0.5)
    async with met_by_datagram(folder, handler, timeouts=timeouts) as (server, client, witness):
        pids = server.active_children
        await client.sendto(b"give up", server.server_address)
        await until(lambda: witness.records)
        assert await ask_by_datagram(server, b"next") == b"next"
        assert server.active_children == pids


@both("replies_twice")
async def test_client_of_a_datagram_is_gone(folder, handler):
    """A reply to nobody is the client's doing: ``disconnected``; the next one is served."""
    gone, here = folder / "gone", folder / "client"
    async with met_by_datagram(folder, handler) as (server, client, witness):
        before = server.active_children
        await client.sendto(os.fsencode(gone), server.server_address)
        assert await client.recv(1000) == os.fsencode(gone)
        here.rename(folder / "moved")
        gone.touch()
        await until(lambda: witness.records)
        (folder / "moved").rename(here)
        await client.sendto(os.fsencode(folder), server.server_address)
        assert [await client.recv(1000) for _ in range(2)] == [os.fsencode(folder)] * 2
        await until(lambda: len(witness.records) == 2)
        assert server.active_children == before
    assert witness.outcomes == ["disconnected", "completed"]


@both("replies_without_end")
@table(
    ("outcome", "reason"),
    {
        "for longer than Timeouts.write; the worker lives": ("timed_out", "(write)"),
        "and cancelled then, its worker is killed as any other": ("killed", "enough"),
        "or its worker has ended by then, and nobody is killed": ("cancelled", "enough"),
    },
)
async def test_client_of_a_datagram_takes_nothing(handler, outcome, reason, folder):
    """Its queue is full, so that a reply waits to be sent."""
    timeouts = Timeouts(write=0.1) if outcome == "timed_out" else Timeouts()
    async with met_by_datagram(folder, handler, timeouts=timeouts) as (server, client, witness):
        [pid] = before = server.active_children
        await client.sendto(b"hello", server.server_address)
        if outcome != "timed_out":
            await shows(server, state="writing")
            await until(lambda: server.snapshot().requests[0].bytes_sent)
            if outcome == "cancelled":
                os.kill(pid, signal.SIGKILL)
                await until(lambda: pid not in server.active_children)
            assert server.cancel_request(1, "enough")
        await until(lambda: witness.records)
        assert (server.active_children == before) == (outcome == "timed_out")
    [record] = witness.records
    assert str(record.outcome) == outcome
    assert reason in record.reason
    assert record.bytes_sent >= 5


# Drains that come early ----------------------------------------------------------------------


@asynccontextmanager
async def starting(path, **fields):
    """A server that is bound, whose workers are ready when there is a file."""
    init = partial(handlers.init_waits_for, str(path))
    server = on_tcp(handlers.Upper, handlers.Patient, child_init=init, **fields)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery, server:
            yield server, nursery


async def _shut_down_when(condition, server):
    await until(condition)
    server.shutdown(0.2)


@pytest.mark.parametrize("when", ["before", "meanwhile"])
async def test_shut_down_while_workers_start(when, tmp_path):
    """They have as long as the grace; if that is over, there is nobody to be served."""
    async with starting(tmp_path / "open") as (server, nursery):
        run = server._run
        with takes(0.2 + SOON, least=0.2):
            if when == "before":
                server.shutdown(0.2)
            else:
                nursery.start_soon(_shut_down_when, lambda: run.serving, server)
            assert await nursery.start(server.serve_forever) is server
            await run.work.wait_over()
        await until(lambda: run.report)
    assert run.report.reason == "shutdown() was called"
    assert server.active_children == []


async def test_queued_clients_are_served_by_workers_that_start(tmp_path):
    """If they are ready within the grace."""
    async with starting(tmp_path / "open") as (server, nursery):
        async with await connect(server) as client:
            await client.send_all(b"hello\n")
            server.shutdown(10)
            nursery.start_soon(server.serve_forever)
            await until(lambda: server._run.serving)
            (tmp_path / "open").touch()
            assert await read_to_end(client) == b"HELLO\n"


async def test_closed_while_workers_start(tmp_path):
    """To leave the block drains, and this is a drain as any other."""
    timeouts = Timeouts(shutdown=0.2)
    async with starting(tmp_path / "open", timeouts=timeouts) as (server, nursery):
        nursery.start_soon(server.serve_forever)
        await until(lambda: server._run.serving)
        with takes(0.2 + SOON):
            await server.server_close()


async def test_handle_request_is_shut_down_while_its_worker_starts(tmp_path):
    """It returns, and nobody has waited in vain."""
    async with starting(tmp_path / "open") as (server, nursery):
        nursery.start_soon(_shut_down_when, lambda: server._run.serving, server)
        with takes(0.2 + SOON):
            await server.handle_request()
    assert server.waited == []
