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
from functools import partial

import pytest
import trio
from support import connect, plain_client, read_to_end, running, until
from support import process_handlers as handlers
from support.processes import (
    SOON,
    both,
    bound,
    busy,
    is_served,
    is_there,
    lasting,
    on_tcp,
    on_udp,
    on_unix_dgram,
)
from support.scenes import table
from support.threads import (
    THERE,
    ask,
    ask_by_datagram,
    crowd,
    of_both_families,
    say,
    shows,
    takes,
    witnessed,
)

import trioserver
from trioserver import HandlerFailed, Limits, Timeouts
from trioserver._modes.processes.protocol.frames import LONGEST_FROM_WORKER

tcp, unix = trioserver.ProcessTCPServer, trioserver.ProcessUnixStreamServer
stream = of_both_families(tcp, unix, min_children=1)


# What runs where ------------------------------------------------------------------
@both("Upper")
async def test_stream_handler(stream, handler):
    """`socketserver`'s handlers and asynchronous ones work as they are, with exact records.

    Megabytes pass both ways, too.
    """
    lines = b"".join(b"%d %s\n" % (number, b"x" * 1000) for number in range(3000))
    async with lasting(server := stream(handler), *["completed"] * 4) as witness:
        for _ in range(3):
            assert await ask(server, b"one\ntwo\n") == b"ONE\nTWO\n"
        async with await connect(server) as client, trio.open_nursery() as nursery:

            async def sends():
                await client.send_all(lines)
                await client.send_eof()

            nursery.start_soon(sends)
            assert await read_to_end(client) == lines.upper()
    sizes = [(it.bytes_received, it.bytes_sent) for it in witness.records]
    assert sizes == [(8, 8)] * 3 + [(len(lines),) * 2]
    assert {it.info.mode for it in witness.records} == {"process"}


@both("tells")
async def test_what_a_handler_sees(handler, caplog):
    """A copy of the server, the server's own info of its request, and what ``child_init`` did.

    ``socket.setdefaulttimeout`` there is for synchronous handlers, as in threads. Context
    variables are the request's own: neither the server's, nor what the one before has set.
    """

    async def busy(connection): ...  # runs here, and need not pickle

    fields = {"greeting": "hi", "max_children": 1, "child_init": handlers.init}
    server = on_tcp(handler, handlers.Noting, limits=Limits(when_full=busy), **fields)
    server.my_colour, server.my_lock = "red", lambda: None
    handlers.visitor.set("the server")
    async with witnessed(server) as witness:
        told = [json.loads(await ask(server, b"")) for _ in range(2)]
        address, [pid] = repr(server.server_address), server.active_children
    # One copy a worker: unbound, with the user's own attributes; what changes there stays there.
    for visits, (facts, record) in enumerate(zip(told, witness.records, strict=True)):
        info = record.info
        assert facts == {
            "server": "Noting",
            "greeting": "hi",
            "server_address": address,
            "pid": pid,
            "request": [info.id, str(info), "process"],
            "observers": 0,
            "is_bound": False,
            "client_address": repr(info.client_address),
            "own": {"my_colour": "red"} | ({"my_visits": 1} if visits else {}),
            "timeout": 7 if handler is handlers.tells else None,
            "init": f"ran in {pid}",
            "visitor": "nobody",
        }
    assert not hasattr(server, "my_visits")
    assert "PROCESS_HANDLERS_INIT" not in os.environ
    # What does not pickle is left out, with a warning each.
    [record] = caplog.records
    assert (record.name, record.levelname) == ("trioserver.error", "WARNING")
    assert "do not have Noting.my_lock, which does not pickle" in record.getMessage()
    assert callable(server.my_lock)


async def test_hooks_run_in_the_parent(caplog):
    """Every hook is called in the server's own process, in the usual order, also for errors.

    No worker misses one that is set on the object, and nobody is told so.
    """
    server, called = on_tcp(handlers.does), []
    usual = (
        *("server_bind", "server_activate", "verify_request", "process_request"),
        *("finish_request", "handle_error", "shutdown_request", "close_request"),
    )

    async def noted(name, *arguments):
        called.append(name)
        return name == "handle_error" or await getattr(type(server), name)(server, *arguments)

    for name in usual:
        setattr(server, name, partial(noted, name))
    async with running(server):
        assert await ask(server, b"error") == b"begun."
    assert called == [*usual]
    assert caplog.records == []


@both("closes_early")
async def test_handler_that_closes(stream, handler, tmp_path):
    """Its client is told at once, however long it then goes on."""
    server = stream(handler)
    server.my_path = str(tmp_path / "enough")
    async with lasting(server, "completed"), await connect(server) as client:
        await shows(server, state="writing")
        assert len(await read_to_end(client)) == 20_000_000
        # Else a kill were one in a write.
        await shows(server, state="working", bytes_sent=20_000_000)
        (tmp_path / "enough").touch()


@table(
    ("handler", "says", "gets", "outcome", "reason"),
    {
        "a silent client": (handlers.Upper, b"x\n", b"X\n", "timed_out", "0.1 s (idle)"),
        "the same of a task": (handlers.AsyncUpper, b"x\n", b"X\n", "timed_out", "0.1 s (idle)"),
        "an endless line, for a task": (handlers.AsyncUpper, b"x", b"", "timed_out", "(line)"),
        "a task cancels itself": (handlers.cancels_itself, b"", b"", "cancelled", "had enough"),
        "a handler closes the descriptor": (handlers.makes_a_file, b"", b"a file", "completed", ""),
        "a child of its own answers": (handlers.ForksToAnswer, b"x\n", b"X\n", "completed", ""),
    },
)
async def test_worker_goes_on(stream, handler, says, gets, outcome, reason):
    """It ends its request, and nothing else: the worker serves on."""
    timeouts = Timeouts(line=0.1) if "line" in reason else Timeouts(idle=0.1)
    server = stream(handler, timeouts=timeouts, max_children=1)
    async with lasting(server, outcome, outcome) as witness:
        for _ in range(2):
            async with await connect(server) as client:
                await client.send_all(says)
                assert await read_to_end(client) == gets
    assert reason in witness.records[0].reason


# Errors ---------------------------------------------------------------------------------
@both("does")
@table(
    ("deed", "told"),
    {
        "PR-11: an exception ends its request alone": ("error", "ValueError: on purpose"),
        "PR-11: it travels as text, also a deep one": ("deep", "ValueError: on purpose"),
        "PR-11: or one whose traceback cannot be made": ("unshowable", "Unshowable"),
        "EX-11: raised by hand, GeneratorExit is a mistake of the handler's": (
            *("generator_exit", "RuntimeError: a handler or hook raised GeneratorExit"),
        ),
    },
)
async def test_error_in_a_handler(handler, deed, told, caplog):
    """It is a ``HandlerFailed`` with the worker's traceback; the worker serves on."""
    caplog.set_level(logging.ERROR)
    async with lasting(server := on_tcp(handler), "failed", "completed") as witness:
        assert await ask(server, deed.encode()) == b"begun."
        await is_served(server)
    failed = witness.records[0]
    assert failed.reason == f"HandlerFailed: {told}"
    assert (failed.bytes_received, failed.bytes_sent) == (len(deed), 6)
    [record] = caplog.records
    error = record.exc_info[1]
    assert isinstance(error, HandlerFailed)
    assert str(error) == told
    where = "in fails\n    raise kind(*facts)" if deed == "error" else "in does"
    assert where in str(error.__cause__)
    assert where in caplog.text


def test_system_that_cannot_pass_descriptors(monkeypatch):
    """PR-15: it is refused when the server is built."""
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(NotImplementedError, match="worker processes need POSIX"):
        on_tcp(handlers.Upper)


NO_INIT = "child_init must be a plain function without arguments"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(on_tcp, handlers.Back), "serves datagrams"),
        (partial(on_tcp, handlers.AsyncBack), "serves datagrams"),
        (partial(on_udp, handlers.Upper), "serves connections"),
        (partial(on_tcp, handlers.Upper, child_init=5), NO_INIT),
        (partial(on_tcp, handlers.Upper, child_init=trio.sleep_forever), NO_INIT),
        (partial(on_tcp, handlers.Upper, child_init=lambda: (yield)), NO_INIT),
        (partial(on_tcp, handlers.Upper, child_init=lambda server: None), NO_INIT),
        (partial(on_tcp, handlers.Upper, start_method="fork"), "'forkserver' or 'spawn'.*'fork'"),
    ],
)
def test_refused_at_once(make, message):
    """What can be told is told when the server is built; nothing forks a running loop."""
    with pytest.raises((TypeError, ValueError), match=message):
        make()


@both("Upper")
async def test_client_that_resets(handler, caplog):
    """A client that goes away is nobody's error: ``disconnected``, and no traceback."""
    async with lasting(server := on_tcp(handler), "disconnected", "completed") as witness:
        async with await connect(server) as client:
            await say(client, b"one\n")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await until(lambda: witness.records)
        assert await ask(server, b"two\n") == b"TWO\n"
    assert not [it for it in caplog.records if it.levelno > logging.INFO]


# Drains ---------------------------------------------------------------------------------
@both("Upper")
async def test_drain(stream, handler):
    """PR-13: it ends a wait between two requests at once; a request that has begun is finished.

    However long that takes: half a line was there, the other half comes in the drain. And a
    connection that never said a byte has half a second from its accept.
    """
    async with running(server := stream(handler, min_children=4)), crowd(server, 4) as clients:
        idle, begun, late, silent = clients
        for client in (idle, idle, begun):
            await say(client, b"one\n")
        await begun.send_all(b"tw")

        def state_of(request):
            return request.state, request.bytes_received, request.bytes_sent

        seen = [("idle", 8, 8), ("reading", 6, 4), ("idle", 0, 0), ("idle", 0, 0)]
        await until(lambda: [state_of(it) for it in server.snapshot().requests] == seen)
        with takes(SOON):
            server.shutdown(8)
            assert await read_to_end(idle) == b""
        await late.send_all(b"late\n")
        assert await read_to_end(late) == b"LATE\n"
        with takes(0.5 + SOON):
            assert await read_to_end(silent) == b""
        await begun.send_all(b"o\n")
        assert await read_to_end(begun) == b"TWO\n"
    report = await server.wait_closed()
    assert report.clean
    ends = [(str(it.outcome), it.bytes_received, it.bytes_sent) for it in report.requests]
    assert ends == [("drained", size, size) for size in (8, 5, 0, 8)]


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


# Cancelling --------------------------------------------------------------------------------
@both("does")
async def test_outer_scope_is_cancelled(handler, caplog):
    """The program around the server is cancelled: workers and requests are gone at once.

    Workers that have nothing to do, too, and nobody says that they have crashed.
    """
    with trio.CancelScope() as outer:
        server = on_tcp(handler, min_children=2)
        async with witnessed(server) as witness, busy(server):
            children = server.active_children
            began = time.perf_counter()
            outer.cancel(reason="home time")
            await trio.lowlevel.checkpoint()
    assert time.perf_counter() - began < SOON
    assert witness.outcomes == ["killed"]
    assert not any(is_there(pid) for pid in children)
    assert caplog.records == []


@both("Upper")
async def test_handle_request(handler):
    """``handle_request`` starts one worker for its call, and ends it; or nobody comes."""
    with trio.fail_after(10):
        async with handlers.Noting(THERE, handler, timeout=0.05) as server:
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
        for number in (2, 3):
            server.cancel_request(number, "enough")


# What is logged ---------------------------------------------------------------------------
@table(
    ("deed", "logged"),
    {
        "what is logged in a worker, its server's loggers get": (b"log", ["seen in a worker"]),
        "what a child of a worker logs does not arrive": (b"log_child", []),
        "a module's own handlers get records here, and only here": (b"log_own", []),
    },
)
async def test_log_records(deed, logged, caplog, capfd):
    """They arrive, once, and their worker serves on."""
    handlers.own_records.buffer.clear()
    # Not by a fork server, whose stderr may be that of an earlier test.
    async with running(server := on_tcp(handlers.does, start_method="spawn")):
        [pid] = server.active_children
        for _ in range(2):
            assert await ask(server, deed) == b"begun.%d" % pid
    records = [it for it in caplog.records if it.name == "app"]
    assert [it.getMessage() for it in records] == logged * 2
    assert {it.levelname for it in records} <= {"WARNING"}
    assert {it.process for it in records} <= {pid}
    # A warning goes to where those go for which there is no handler.
    assert capfd.readouterr().err == "seen in a child\n" * 2 * (deed == b"log_child")
    own = [it.getMessage() for it in handlers.own_records.buffer]
    assert own == ["seen in a worker"] * 2 * (deed == b"log_own")


async def test_log_records_of_a_signal_handler(caplog):
    """They arrive, also from the middle of another one, and nobody waits for himself."""
    caplog.set_level(logging.INFO, "app")
    async with running(server := on_tcp(handlers.does)):
        [pid] = server.active_children
        with trio.fail_after(10):
            assert await ask(server, b"log_signal") == b"begun.%d" % pid
    messages = [it.getMessage() for it in caplog.records if it.name == "app"]
    assert messages.count("x" * 1000) == 1000
    assert set(messages) == {"x" * 1000, "in a signal"}


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
    async with lasting(server := on_tcp(handlers.Upper), *["completed"] * 4):
        for _ in range(3):
            assert await ends_without_this_process(server, seconds=10)
        assert await ask(server, b"hello\n") == b"HELLO\n"


@pytest.mark.parametrize(
    "hook", ["process_request", "finish_request", "shutdown_request", "close_request"]
)
async def test_server_ends_the_output_if_a_hook_could_say_more(hook):
    """What an override sends when the handler has returned still reaches the client."""
    server, goodbye = on_tcp(handlers.Upper), b"" if hook == "close_request" else b"goodbye\n"

    async def says_goodbye(request, *rest):
        if hook == "shutdown_request":
            await request.sendall(goodbye)
        await getattr(type(server), hook)(server, request, *rest)
        if hook in {"process_request", "finish_request"}:
            await request.sendall(goodbye)

    setattr(server, hook, says_goodbye)
    async with running(server):
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


@both("tells")
async def test_address_that_get_request_has_made_up(handler):
    """What pickles comes as it is; what does not is that request's error, and no worker's."""
    server = on_tcp(handler)

    def get_request(listener):
        got = type(server).get_request(server, listener)
        return got and (got[0], address)

    server.get_request = get_request
    async with lasting(server, *["completed"] * 4, "failed", "completed") as witness:
        for address in [((1, 2), "more"), (), [1], None]:
            assert json.loads(await ask(server, b""))["client_address"] == repr(address)
        address = threading.Lock()
        assert await ask(server, b"") == b""
        address = "the next one"
        assert json.loads(await ask(server, b""))["client_address"] == "'the next one'"
    assert "does not pickle, so no worker process can have it" in witness.records[4].reason


# Datagrams -----------------------------------------------------------------------------------
@both("replies")
async def test_replies(handler):
    """They come from the address that was asked, on a wildcard bind, too: the server knows it.

    One that is too large for the system, or for any frame, is an ``OSError`` in the handler; to
    an address that is none it is the error of the other modes. The worker goes on.
    """
    server = trioserver.ProcessUDPServer(("0.0.0.0", 0), handler, min_children=1)
    async with lasting(server, *["completed"] * 6) as witness:
        there = ("127.0.0.2", server.server_address[1])
        with trio.socket.socket(type=socket.SOCK_DGRAM) as client:
            await client.bind(THERE)

            async def is_answered(says, *answers):
                await client.sendto(says, there)
                for answer in answers:
                    received, sender = await client.recvfrom(100_000)
                    assert (received[: len(answer)], sender) == (answer, there)

            for size in (70_000, LONGEST_FROM_WORKER, 20_000_000):
                await is_answered(b"%d" % size, b"OSError(%d, " % errno.EMSGSIZE)
            await is_answered(b"5 99999", b"OverflowError(")
            for size in (0, 60_000):
                await is_answered(b"%d" % size, bytes(size), b"%d sent from 127.0.0.2" % size)
    last = witness.records[-1]
    assert (last.info.mode, last.bytes_received, last.bytes_sent) == ("process", 5, 60_025)


async def test_reply_after_the_end(tmp_path):
    """A thread that is left behind cannot send, nor take what comes for the next request."""
    server = on_udp(handlers.replies_too_late)
    path = tmp_path / "now"
    server.my_path = str(path)
    async with lasting(server, *["completed"] * 4) as witness:
        assert await ask_by_datagram(server, b"late") == b"late"
        await until(lambda: witness.records)
        path.touch()
        await until(path.read_text)
        assert path.read_text() == "the request is over, and its way back is closed"
        for number in range(3):
            assert await ask_by_datagram(server, b"%d" % number) == b"%d" % number


@both("replies_twice")
async def test_client_of_a_datagram_is_gone(folder, handler):
    """A reply to nobody is the client's doing: ``disconnected``; the next one is served."""
    gone, here, moved = folder / "gone", folder / "client", folder / "moved"
    server = on_unix_dgram(folder, handler)
    async with lasting(server, "disconnected", "completed") as witness, bound(here) as client:
        await client.sendto(os.fsencode(gone), server.server_address)
        assert await client.recv(1000) == os.fsencode(gone)
        here.rename(moved)
        gone.touch()
        await until(lambda: witness.records)
        moved.rename(here)
        await client.sendto(os.fsencode(folder), server.server_address)
        assert [await client.recv(1000) for _ in range(2)] == [os.fsencode(folder)] * 2


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
    async with witnessed(server := on_unix_dgram(folder, handler, timeouts=timeouts)) as witness:
        [pid] = before = server.active_children
        async with bound(folder / "client") as client:
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
@pytest.mark.parametrize("meanwhile", [False, True])
async def test_shut_down_while_workers_start(meanwhile, tmp_path):
    """They have as long as the grace; if that is over, there is nobody to be served."""
    never = partial(handlers.init_waits_for, str(tmp_path / "never"))
    async with on_tcp(handlers.Upper, child_init=never) as server, trio.open_nursery() as nursery:
        run = server._run

        async def shuts_down():
            await until(lambda: run.serving or not meanwhile)
            server.shutdown(0.2)

        with takes(0.2 + SOON, least=0.2), trio.fail_after(20):
            nursery.start_soon(shuts_down)
            await trio.testing.wait_all_tasks_blocked()
            assert await nursery.start(server.serve_forever) is server
            await run.work.wait_over()
        await until(lambda: run.report)
    assert run.report.reason == "shutdown() was called"
    assert server.active_children == []
