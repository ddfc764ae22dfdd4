"""`trioserver.testing.open_test_server`: what it serves, and that wrong tests fail."""

import contextlib
import math
import re
import socketserver
import threading
import time

import pytest
import trio
from support import Upper, descriptors, hold, no_sockets, read_to_end
from support.speaking import EVERYWHERE, Back, answer, fails, speaks
from trio.testing import wait_all_tasks_blocked

import trioserver
from trioserver.testing import (
    Hung,
    Latency,
    Unfinished,
    open_descriptors,
    open_test_server,
    wall_clock_guard,
)


class SyncUpper(socketserver.StreamRequestHandler):
    """Answers a line, after a while."""

    def handle(self):
        time.sleep(0.05)
        self.wfile.write(self.rfile.readline().upper())


@EVERYWHERE
async def test_serves_a_handler(where):
    """Over each network, on an address that looks like one of it; what was said is noted.

    CK-01: in memory not one socket is opened, with a fault neither. Behind the kernel nothing
    is noted, and it says so, rather than that there were none.
    """
    in_memory = where == "memory"
    faults = [Latency(0.01)] if in_memory else None
    with no_sockets() if in_memory else contextlib.nullcontext():
        async with open_test_server(Upper, transport=where, faults=faults) as server:
            for text in (b"one\n", b"two\n"):
                assert await answer(server, text) == text.upper()
            exchanges = await server.wait_requests(2)
            if in_memory:
                with pytest.raises(TypeError, match=r"has connections: connect\(\)"):
                    await server.client()
    if in_memory:
        bytes_of = [(one.received, one.sent) for one in exchanges]
        assert bytes_of == [(b"one\n", b"ONE\n"), (b"two\n", b"TWO\n")]
    else:
        with pytest.raises(RuntimeError, match="in memory only"):
            _ = exchanges[0].received
    peer = exchanges[0].info.client_address
    if where == "unix":
        assert peer == ""
        with pytest.raises(TypeError, match="has no port"):
            _ = server.port
    else:
        assert peer[0] == "127.0.0.1"
        assert peer[1] > 1023
        assert exchanges[0].info.server_address == ("127.0.0.1", server.port)


async def test_serves_a_server_as_it_is(autojump_clock):
    """CK-04: its hooks, limits, time-outs, its own observers; and gives it back as it was.

    A day of silence takes no time.
    """

    class Careful(trioserver.TCPServer):
        async def verify_request(self, request, client_address):
            return client_address[1] % 2 == 0

    original = Careful(("", 0), Upper, timeouts=trioserver.Timeouts(idle=86_400))
    before, began = dict(vars(original)), time.perf_counter()
    async with open_test_server(original) as server:
        assert server.server is original
        for _ in range(2):
            client = await server.connect()
            with contextlib.suppress(trio.BrokenResourceError):
                await read_to_end(client)
    assert [str(one.outcome) for one in server.exchanges] == ["timed_out", "refused"]
    assert [one.record.duration for one in server.exchanges] == [86_400, 0]
    assert time.perf_counter() - began < 1
    after = vars(original)
    assert {name for name, value in before.items() if after.get(name) != value} <= {"_report"}


# Wrong tests fail -------------------------------------------------------------------


async def test_expected_error_does_not(autojump_clock):
    """PY-04: it is there to be looked at; a missing one fails the test, after a virtual second.

    What came in its block is found, whatever has been forgotten meanwhile.
    """
    async with open_test_server(fails) as server:
        await speaks(server)
        await server.wait_requests(1)
        async with server.expect_error(KeyError) as errors:
            with pytest.raises(ExceptionGroup):
                server.check()
            await speaks(server)
        assert [error.args for error in errors] == [(b"hello\n",)]
    began = trio.current_time()
    with pytest.raises(AssertionError, match="no handler has raised KeyError, which this test"):
        async with open_test_server(Upper) as server, server.expect_error(KeyError):
            pass
    assert trio.current_time() == began + 1


async def test_error_of_another_kind(autojump_clock):
    """Fails the test all the same, and is named; a group, say, that the test did not think of."""
    message = r"no handler has raised OSError, which this test expects; there was KeyError\("
    with pytest.raises(AssertionError, match=message) as caught:
        async with open_test_server(fails) as server, server.expect_error(OSError):
            await speaks(server)
    assert "KeyError: b'hello" in caught.value.__notes__[0]


async def test_unfinished_handler_fails_the_test(autojump_clock):
    """By name, a virtual second after the test, with what it was doing; others' errors beside."""

    async def fails_or_stays(request, client_address, server):
        if await request.recv(100) == b"fail":
            raise KeyError("a handler's own")
        await trio.sleep_forever()

    with pytest.raises(Unfinished) as caught:
        async with open_test_server(fails_or_stays) as server:
            for word in (b"stay", b"fail"):
                await speaks(server, word)
                await wait_all_tasks_blocked()
    assert str(caught.value) == (
        "requests still go on 1 s after the test:\n"
        "  request 1 from 127.0.0.1:49152, working, for 1.000 s"
    )
    assert trio.current_time() == pytest.approx(1)
    [note] = caught.value.__notes__
    assert 'raise KeyError("a handler\'s own")' in note


async def test_lenient(autojump_clock):
    """``strict=False``: errors are noted, and whoever goes on is cut.

    The clients are closed first: who waits for them ends by that, and fails no test.
    """
    for handler, strict, outcome in (
        *((fails, False, "failed"), (hold, False, "cancelled")),
        (Upper, True, "completed"),
    ):
        async with open_test_server(handler, strict=strict) as server:
            await speaks(server, b"!" if handler is fails else b"")
            await wait_all_tasks_blocked()
        [exchange] = server.exchanges
        assert (str(exchange.outcome), exchange.error is None) == (outcome, handler is not fails)
    assert trio.current_time() < 1


@pytest.mark.parametrize("where", ["memory", "udp", "unix"])
async def test_serves_datagrams(where):
    """With clients that can be replied to, and that have no connections."""
    async with open_test_server(Back, transport=where) as server:
        if where == "memory":
            with pytest.raises(TypeError, match=r"no connections: client\(\)"):
                await server.connect()
        client = await server.client()
        await client.send(b"hello")
        assert await client.receive() == b"olleh"
        [exchange] = await server.wait_requests()
    assert exchange.outcome is trioserver.Outcome.COMPLETED


THREADED = trioserver.ThreadingTCPServer(("127.0.0.1", 0), SyncUpper)
TCP = trioserver.TCPServer(("127.0.0.1", 0), Upper)


@pytest.mark.parametrize(
    ("server", "options", "error", "message"),
    [
        (Upper, {"transport": "sctp"}, ValueError, "'udp' or 'unix', not 'sctp'"),
        (trioserver.TCPServer, {}, TypeError, "TCPServer is a class of servers: make one"),
        (trioserver.UDPServer(("", 0), hold), {"transport": "tcp"}, TypeError, "its own is 'udp'"),
        (TCP, {"transport": "unix"}, TypeError, "over 'unix'; its own is 'tcp'"),
        (THREADED, {}, TypeError, "do not run in Trio, and need the kernel's sockets: tran"),
        (THREADED, {"transport": "tcp", "faults": [Latency(1)]}, TypeError, "and no faults"),
        (TCP, {"strict": 1}, TypeError, "strict must be True or False, not 1"),
        (TCP, {"autojump": "no"}, ValueError, "autojump must be 'refuse' or 'wait', not 'no'"),
        (TCP, {"guard": "60"}, TypeError, "the guard must be a number of seconds, not '60'"),
        (TCP, {"guard": 0}, ValueError, "the guard must be greater than 0 seconds, not 0"),
        (TCP, {"guard": math.nan}, ValueError, "the guard must be greater than 0 seconds, not nan"),
        (TCP, {"faults": Latency(1)}, TypeError, "must be Faults or a list of faults, [...]"),
        (TCP, {"faults": [1]}, TypeError, "a fault is one of Latency, "),
    ],
)
async def test_what_cannot_be_served_is_refused(server, options, error, message):
    """In words, before anything is opened."""
    with pytest.raises(error, match=re.escape(message)):
        async with open_test_server(server, **options):
            raise AssertionError("it was served")
    if isinstance(server, trioserver.BaseServer):
        assert server.snapshot().state == "unbound"


async def test_server_that_is_bound_is_refused():
    """It would be closed behind somebody's back."""
    async with TCP.evolve() as server:
        with pytest.raises(RuntimeError, match="is bound already: a test server binds it"):
            async with open_test_server(server, transport="tcp"):
                raise AssertionError("it was served")


async def test_jumping_clock_waits_for_a_thread_of_a_handler(autojump_clock):
    """In memory, too: it would jump over the thread. Whoever switches autojump off has it off."""

    async def slow(request, client_address, server):
        with trio.fail_after(30):
            await trio.to_thread.run_sync(time.sleep, 0.1)
        await request.sendall(b"done")

    async with open_test_server(slow) as server:
        assert await read_to_end(await server.connect()) == b"done"
        assert trio.current_time() < 30
        await trio.sleep(1000)  # and it jumps again
        assert trio.current_time() >= 1000
        autojump_clock.autojump_threshold = math.inf
        for _ in range(3):
            await trio.lowlevel.checkpoint()
        assert autojump_clock.autojump_threshold == math.inf


async def test_jumping_clock_waits_for_threads_if_it_is_told_to(autojump_clock):
    """While a request is open it stands still."""
    threaded = THREADED.evolve(timeouts=trioserver.Timeouts(request=10))
    async with open_test_server(threaded, transport="tcp", autojump="wait") as server:
        assert await read_to_end(await speaks(server)) == b"HELLO\n"
        await server.wait_idle()
        assert trio.current_time() < 1
        assert [str(one.outcome) for one in server.exchanges] == ["completed"]
    assert autojump_clock.autojump_threshold == 0


async def test_hung_test_is_ended_and_shown(monkeypatch):
    """By the wall clock, with the tree of its tasks, also when a handler is shielded from it."""
    monkeypatch.setattr("trioserver.testing._looking.guard.A_LAST_MOMENT", 0.1)

    async def shields_itself(request, client_address, server):
        with trio.CancelScope(shield=True):
            await trio.sleep_forever()

    with pytest.raises(Hung) as caught:
        async with open_test_server(shields_itself, guard=0.2) as server:
            await read_to_end(await server.connect())
    told = str(caught.value)
    assert told.startswith("it took more than 0.2 real seconds; the tasks were here:\n")
    assert "TCPServer request 1 from 127.0.0.1" in told
    assert "in test_hung_test_is_ended_and_shown: await read_to_end(" in told
    assert "in shields_itself: await trio.sleep_forever" in told


async def test_hang_that_a_handler_error_has_caused():
    """What has kept the client waiting is a note on `Hung`."""
    with pytest.raises(Hung) as hung:
        async with open_test_server(fails, guard=0.1) as server:
            await speaks(server)
            await trio.sleep_forever()
    assert "KeyError: b'hello" in "".join(hung.value.__notes__)


async def test_guard_leaves_no_thread():
    """When it was not needed; more seconds than the system can wait are no error."""
    before = threading.active_count()
    for seconds, threads in ((60, 1), (math.inf, 0), (1e300, None)):
        async with wall_clock_guard(seconds):
            assert threads in (None, threading.active_count() - before)
        assert threading.active_count() == before


@EVERYWHERE
@pytest.mark.parametrize("failure", [trio.Cancelled, ZeroDivisionError])
async def test_clients_are_closed_whatever_happens(where, failure):
    """All of them, and not just the first, so that they complain of nothing later."""
    before = descriptors()
    with trio.CancelScope() as scope, contextlib.suppress(ZeroDivisionError):
        async with open_test_server(Upper, transport=where) as server:
            clients = [await server.connect() for _ in range(3)]
            if failure is ZeroDivisionError:
                raise ZeroDivisionError
            scope.cancel()
            await trio.lowlevel.checkpoint()
    for client in clients:
        with pytest.raises(trio.ClosedResourceError):
            await client.send_all(b"x")
    assert open_descriptors() == before


async def test_clock_stands_still_for_each_server(autojump_clock):
    """CK-05: also when another one has been opened since, and was closed."""
    tcp = {"transport": "tcp", "autojump": "wait"}
    async with open_test_server(hold, **tcp, strict=False) as server:
        await server.connect()
        async with open_test_server(Upper):
            await wait_all_tasks_blocked(0.1)
        while not server.exchanges:
            await wait_all_tasks_blocked(0.01)
        with pytest.raises(RuntimeError, match="this test runs on a clock with autojump"):
            async with open_test_server(Upper, transport="tcp"):
                pass
        async with open_test_server(Upper) as other:
            assert await answer(other) == b"HELLO\n"
        assert autojump_clock.autojump_threshold == math.inf
    assert autojump_clock.autojump_threshold == 0


async def test_requests_that_cannot_come(autojump_clock):
    """Who waits for more than there will be is told so, and not kept."""
    async with open_test_server(Upper) as server:
        await (await server.connect()).aclose()
        await server.wait_requests(1)
        await server.stop()
        with pytest.raises(RuntimeError, match="has ended, and so have 1 requests: there will be"):
            await server.wait_requests(2)
