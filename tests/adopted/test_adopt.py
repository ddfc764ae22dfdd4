"""`adopt`: objects of `socketserver`, built by somebody else, served as they are."""

import contextvars
import logging
import socket
import socketserver
import sys
import threading

import pytest
import trio
from support import descriptors, plain_client, until
from support.adopting import THERE, Upper, adopted, fails, in_thread, theirs
from support.scenes import table
from support.threads import does, hooked, takes

import trioserver
from trioserver import Timeouts, adopt

pytestmark = pytest.mark.usefixtures("nothing_stays_open", "no_thread_stays")

local = threading.local()
variable = contextvars.ContextVar("variable", default=None)


@pytest.fixture
def no_thread_stays():
    """What adopt() has started ends with it; Trio's own threads may stay."""
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        if not thread.name.startswith("Trio thread"):
            thread.join(5)
            assert not thread.is_alive()


def of_kind(kind, folder, handler):
    """A server of that kind."""
    address = str(folder / "socket") if "Unix" in kind else THERE
    return getattr(socketserver, f"{kind}Server")(address, handler)


@pytest.mark.parametrize("kind", ["TCP", "UnixStream", "ThreadingTCP", "ThreadingUnixStream"])
async def test_stream_server(kind, tmp_path):
    """Connections over TCP and Unix sockets, with threads and without."""
    async with adopted(of_kind(kind, tmp_path, Upper)) as it:
        for _ in range(3):
            assert await it.ask() == b"HELLO\n"
        await it.ended(3)
    assert it.outcomes == ["completed"] * 3
    facts = {(record.info.mode, record.bytes_received, record.bytes_sent) for record in it.records}
    assert facts == {("thread", 6, 6)}
    assert it.report.clean
    assert it.server.fileno() == -1
    await in_thread(it.server.shutdown)  # which returns at once by now


@pytest.mark.parametrize("kind", ["UDP", "UnixDatagram", "ThreadingUDP", "ThreadingUnixDatagram"])
async def test_datagram_server(kind, tmp_path):
    """Datagrams over UDP and Unix sockets."""
    answers = {"handle": lambda it: it.wfile.write(it.packet.upper())}
    handler = hooked(socketserver.DatagramRequestHandler, **answers)
    server = of_kind(kind, tmp_path, handler)
    with socket.socket(server.address_family, socket.SOCK_DGRAM) as client:
        client.settimeout(5)
        client.bind(str(tmp_path / "client") if "Unix" in kind else THERE)
        async with adopted(server) as it:
            for word in (b"one", b"", b"two"):
                client.sendto(word, server.server_address)
                assert await in_thread(client.recv, 100) == word.upper()
            await it.ended(3)
    assert it.outcomes == ["completed"] * 3


@pytest.mark.parametrize("error", [None, RuntimeError("the second")])
async def test_handle_error_that_raises(error, caplog):
    """It lets errors through, or hides what it was told of: nothing ends, everything is logged."""

    def handle_error(self, request, client_address):
        if error is None:
            raise  # noqa: PLE0704  (it is called while the error is handled)
        raise error from None

    async with adopted(theirs(fails, handle_error=handle_error)) as it:
        for _ in range(2):
            await it.hangs_up()
        await until(lambda: caplog.text.count("ValueError: no") >= 2)
        await until(lambda: str(error or "") in caplog.text)
    assert "handle_error raised" in caplog.text


async def test_what_is_bypassed_is_said():
    """Overrides that adopt() does not call are named."""
    server = theirs(process_request=None, serve_forever=None)  # nor could be called
    with pytest.warns(UserWarning, match="not called under adopt") as warned:
        async with adopted(server) as it:
            assert await it.ask() == b"HELLO\n"
    said = [str(warning.message).partition(" ")[0] for warning in warned]
    assert said == ["Hooked.serve_forever", "Hooked.process_request"]


# shutdown() --------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["task", "thread", "handler"])
async def test_shutdown_from_anywhere(where):
    """It returns when nobody else is let in, also where serve_forever would wait for itself."""

    def stops(request, client_address, server):
        request.recv(3)
        if where == "handler":
            server.shutdown()
        request.sendall(b"done")

    server = theirs(stops)
    with trio.fail_after(10), plain_client(server.server_address) as client:
        async with trio.open_nursery() as nursery:
            await nursery.start(adopt, server)
            if where == "task":
                server.shutdown()
            elif where == "thread":
                await in_thread(server.shutdown)
            if where != "handler":
                with pytest.raises(ConnectionRefusedError):
                    plain_client(server.server_address)
            client.sendall(b"go\n")
            assert await in_thread(client.recv, 10) == b"done"
            client.close()  # else the server lingers


async def test_shutdown_before_serving():
    """A thread that waits for the server to end is released as soon as it has begun."""
    server = theirs(kind=socketserver.TCPServer)
    thread = threading.Thread(target=server.shutdown)
    thread.start()
    with trio.fail_after(10):
        await until(lambda: server._BaseServer__shutdown_request)
        report = await adopt(server)
        await in_thread(thread.join)
    assert report.reason == "shutdown() was called"


async def test_idle_connection_is_drained():
    """It ends at once, though its handler waits in a read; the linger is for the client."""
    async with adopted(theirs(), timeouts=Timeouts(linger=0)) as it:
        with it.client() as client:
            client.sendall(b"x\n")
            assert await in_thread(client.recv, 10) == b"X\n"
            with takes(0.5):
                await in_thread(it.server.shutdown)
                await it.ended()
    assert it.outcomes == ["drained"]


async def test_thread_that_is_left_behind_closes_its_request(caplog):
    """Nobody closes a descriptor under a thread that still works with it."""
    go, seen, ended = threading.Event(), [], threading.Event()
    before = descriptors()

    def stubborn(request, client_address, server):
        go.wait(10)
        seen.append(request.fileno())

    def shutdown_request(self, request):
        socketserver.TCPServer.shutdown_request(self, request)
        ended.set()

    server = theirs(stubborn, shutdown_request=shutdown_request)
    with plain_client(server.server_address) as client:
        async with adopted(server, timeouts=Timeouts(shutdown=0, cleanup=0.05)) as it:
            await it.started()
            await trio.testing.wait_all_tasks_blocked(0.02)
        assert await in_thread(client.recv, 1) == b""
        assert [record.outcome for record in it.report.requests] == ["abandoned"]
        assert "go.wait(10)" in caplog.text
        assert not ended.is_set()
        go.set()
        assert await in_thread(ended.wait, 5)
    assert seen != [-1]
    await until(lambda: descriptors() == before)


# What takes too long -------------------------------------------------------------------------


@pytest.fixture
def errors(caplog):
    """What was logged as an error."""
    return lambda: [it.getMessage() for it in caplog.records if it.levelno >= logging.ERROR]


class Acts(socketserver.TCPServer):
    """Does something besides, and waits in one of its methods until it may go."""

    def __init__(self, waits_in="service_actions"):
        super().__init__(THERE, Upper)
        self.calls = []
        self.began, self.go, self.waits_in = threading.Event(), threading.Event(), waits_in

    def wait(self, where):
        self.began.set()
        if where == self.waits_in:
            self.go.wait(10)
        self.calls.append(where)

    def service_actions(self):
        self.wait("service_actions")

    def server_close(self):
        super().server_close()
        self.wait("server_close")

    def draining(self, grace):
        """As an observer: there is no need to wait any longer."""
        self.go.set()


@pytest.mark.parametrize("waits_in", ["service_actions", "server_close"])
async def test_what_hangs_is_left_behind(waits_in, errors):
    """They get ``timeouts.cleanup`` from the drain on, and a line in the log."""
    server = Acts(waits_in)
    with takes(2):
        async with adopted(server, timeouts=Timeouts(cleanup=0.05)):
            assert await in_thread(server.began.wait, 5)
    server.go.set()
    [told] = errors()
    assert told.startswith(f"Acts.{waits_in} did not end within 0.05 s (cleanup)")
    assert told.endswith("; left behind") == (waits_in == "service_actions")


async def test_service_actions_that_end_in_time_are_waited_for(errors):
    """As ever, nothing of theirs is closed under them."""
    async with adopted(server := Acts(), observers=[server]):
        assert await in_thread(server.began.wait, 5)
    assert server.calls == ["service_actions", "server_close"]
    assert errors() == []


@pytest.mark.parametrize("cleanup", [0.2, 0])
async def test_server_close_is_called_in_any_case(cleanup, errors):
    """Whoever else has all of Trio's threads, and however little time it gets."""
    limiter = trio.to_thread.current_default_thread_limiter()
    for _ in range(int(limiter.total_tokens)):
        limiter.acquire_on_behalf_of_nowait(object())
    server, timeouts = Acts("nothing"), Timeouts(cleanup=cleanup)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda **it: adopt(server, timeouts=timeouts, **it))
            await until(lambda: server.calls)
            server.shutdown()
    assert server.calls == ["service_actions", "server_close"]
    assert errors() == []


@pytest.mark.slow
@pytest.mark.parametrize("waits_for", ["nobody", "the client"])
async def test_handle_error_that_hangs_is_told_once_and_bounded_once(waits_for, errors, caplog):
    """It has ``timeouts.cleanup``, then its thread a moment; its error is told, and its place."""
    go = threading.Event()

    def handle_error(self, request, client_address):
        if waits_for == "nobody":
            go.wait(10)
        else:
            request.recv(1)

    server = theirs(fails, handle_error=handle_error)
    async with adopted(server, timeouts=Timeouts(cleanup=0.5)) as it:
        await it.hangs_up()
        go.set()
    assert it.outcomes == ["failed"]
    assert 0.5 <= it.records[0].duration < 0.9
    *where, of_what = errors()
    places = ["left behind" in it and "go.wait(10)" in it for it in where]
    assert places == ([True] if waits_for == "nobody" else [])  # its time ends what its client does
    assert "handle_error did not end within 0.5 s (cleanup), for request 1" in of_what
    assert "ValueError: no" in caplog.text


async def test_first_error_is_not_lost_in_server_close(caplog):
    """What has ended the server is logged when their server_close raises something else."""

    def service_actions(self):
        raise LookupError("the first")

    def server_close(self):
        socketserver.TCPServer.server_close(self)
        raise RuntimeError("the second") from None

    hooks = {"service_actions": service_actions, "server_close": server_close}
    with trio.fail_after(5), pytest.raises(RuntimeError, match="the second"):
        await adopt(theirs(kind=socketserver.TCPServer, **hooks))
    assert "LookupError: the first" in caplog.text


# What cannot be adopted --------------------------------------------------------------------------


def forks():
    """One that makes processes."""
    return theirs(kind=socketserver.ForkingTCPServer)


def serial():
    """One with nothing to wait for a client with."""
    return theirs(kind=hooked(socketserver.BaseServer, socket=None))


@table(
    "make, options, error, fault",
    {
        "a running Trio program must not fork": (forks, {}, TypeError, 'forks.*forking="threads"'),
        "nor otherwise": (forks, {"forking": "processes"}, ValueError, "must be None or"),
        "no server": (object, {}, TypeError, "takes a server object of socketserver"),
        "no socket": (serial, {}, TypeError, "Hooked has no socket to serve with: .* is None"),
    },
)
async def test_what_is_refused(make, options, error, fault):
    """With what was expected; nothing is closed."""
    server = make()
    with pytest.raises(error, match=fault):
        await adopt(server, **options)
    if make is forks:
        assert server.fileno() != -1
        server.server_close()


@pytest.mark.parametrize("kind", [socketserver.TCPServer, socketserver.UDPServer])
async def test_server_that_is_not_ready_is_refused(kind):
    """Not bound, not listening, closed: each says what to do, and nothing is closed.

    Nor is one that is being adopted: it goes on with who has it.
    """
    server = kind(THERE, Upper, bind_and_activate=False)
    steps = [server.server_bind, server.server_activate]
    for make_ready in steps if kind is socketserver.TCPServer else steps[:1]:
        with pytest.raises(ValueError, match="not bound and listening"):
            await adopt(server)
        make_ready()
    async with adopted(server) as it:
        with pytest.raises(RuntimeError, match="is being served by adopt\\(\\) already"):
            await adopt(server)
        assert kind is socketserver.UDPServer or await it.ask() == b"HELLO\n"
    with pytest.raises(ValueError, match="is closed"):
        await adopt(server)


class Own(socketserver.BaseServer):
    """Makes its own socket, and has no ``fileno``."""

    def __init__(self, address, handler):
        super().__init__(address, handler)
        self.socket = socket.create_server(address)
        self.server_address = self.socket.getsockname()

    def get_request(self):
        return self.socket.accept()

    def server_close(self):
        self.socket.close()


# Others have never had to be particular about them.
FLAGS = {"daemon_threads": 1, "block_on_close": 0, "ends_idle_reads": None}


@table(
    "make, options",
    {
        "one that derives from the base alone": (lambda: theirs(kind=Own), {}),
        "one with flags that are not quite true": (lambda: theirs(**FLAGS), {}),
        "one that forks": (forks, {"forking": "threads"}),
    },
)
async def test_unusual_server(make, options):
    """It is served all the same."""
    async with adopted(make(), **options) as it:
        assert await it.ask() == b"HELLO\n"
        await it.ended()
    assert it.outcomes == ["completed"]


# Which thread calls what -------------------------------------------------------------------


def telling(name):
    """A hook that notes who called it: the thread, what hangs on it, and on the context."""

    def hook(self, *arguments):
        before = getattr(local, "client", None)
        self.threads.add(threading.get_ident())
        self.calls.append((name, before, variable.get()))
        local.client = arguments[1] if len(arguments) == 2 else before
        variable.set(local.client)
        if name == "handle_error":
            self.errors.append(repr(sys.exception()))
            return None
        return getattr(super(Tells, self), name)(*arguments)

    return hook


class Tells:
    """All of its hooks do."""

    def __init__(self, *arguments):
        self.calls, self.threads, self.errors = [], set(), []
        super().__init__(*arguments)

    verify_request = telling("verify_request")
    finish_request = telling("finish_request")
    handle_error = telling("handle_error")
    shutdown_request = telling("shutdown_request")
    close_request = telling("close_request")
    server_close = telling("server_close")


class TellsOfMany(Tells, socketserver.ThreadingTCPServer):
    shutdown = telling("shutdown")


class TellsOfAll(Tells, socketserver.TCPServer):
    service_actions = telling("service_actions")


Picky = hooked(TellsOfMany, verify_request=lambda *it: Tells.verify_request(*it) and False)
SERVED = ["verify_request", "finish_request"]


@table(
    "kind, handler, answer, hooks, outcome",
    {
        "served": (TellsOfMany, Upper, b"X\n", SERVED, "completed"),
        "failed": (TellsOfMany, fails, b"", [*SERVED, "handle_error"], "failed"),
        "turned away": (Picky, Upper, b"", SERVED[:1], "refused"),
        "cancelled": (TellsOfMany, does("recv 2; recv 1"), b"", SERVED, "timed_out"),
    },
)
async def test_hooks_of_one_request_share_a_thread(kind, handler, answer, hooks, outcome):
    """They are called in order, and may block: what one leaves in a thread, the next one finds."""
    hooks = [*hooks, "shutdown_request", "close_request"]
    server = theirs(handler, kind)
    timeouts = Timeouts(request=0.05 if outcome == "timed_out" else 60)
    async with adopted(server, timeouts=timeouts) as it:
        for number in range(1, 4):
            server.calls.clear()
            with it.client() as client:
                client.sendall(b"x\n")
                assert await in_thread(client.recv, 100) == answer
                mine = client.getsockname()
            await until(lambda: len(server.calls) == len(hooks))
            assert [name for name, *_ in server.calls] == hooks
            # In a thread-local, and in a context variable.
            found = [(hung, seen) for _, hung, seen in server.calls]
            assert found == [(None, None)] + [(mine, mine)] * (len(hooks) - 1)
            await it.ended(number)
    assert threading.get_ident() not in server.threads
    assert [name for name, *_ in server.calls[-2:]] == ["shutdown", "server_close"]
    assert it.outcomes == [outcome] * 3
    assert server.errors == ["ValueError('no')"] * (3 if outcome == "failed" else 0)


async def test_plain_server_does_everything_in_one_thread():
    """From service_actions to server_close: so one thing at a time, and what is a thread's own."""
    async with adopted(server := theirs(kind=TellsOfAll)) as it:
        await until(lambda: server.calls)
        for _ in range(3):
            assert await it.ask() == b"HELLO\n"
            await until(lambda: server.calls[-1][0] != "finish_request")
    assert len(server.threads - {threading.get_ident()}) == len(server.threads) == 1
    assert [server.calls[i][0] for i in (0, -1)] == ["service_actions", "server_close"]
    # Of the context, only what this request has set.
    seen = [seen for name, _, seen in server.calls if name == "verify_request"]
    assert seen == [None] * 3


async def test_plain_server_whose_thread_is_left_behind(caplog):
    """It is waited for by the next request, for it is the same thread, and not by server_close."""
    go, threads, closed = threading.Event(), [], []

    def finish_request(self, request, client_address):
        threads.append(threading.get_ident())
        go.wait(10)
        request.sendall(b"done")

    def server_close(self):
        closed.append(threading.get_ident())
        socketserver.TCPServer.server_close(self)

    kind = hooked(socketserver.TCPServer, finish_request=finish_request, server_close=server_close)
    timeouts = Timeouts(request=0.05, cleanup=0.05, shutdown=0)
    async with adopted(server := theirs(kind=kind), timeouts=timeouts) as it:
        with it.client() as first:
            await it.ended()
            with it.client() as second:
                await trio.testing.wait_all_tasks_blocked(0.02)
                assert len(threads) == 1
                go.set()
                assert await in_thread(second.recv, 4) == b"done"
                await it.ends_with(first)
            await it.ended(2)
            go.clear()
            with it.client():
                await it.ended(3)
                server.shutdown()
    assert it.outcomes == ["abandoned", "completed", "abandoned"]
    assert len(set(threads)) == 1
    assert closed
    assert closed != threads[:1]
    assert caplog.text.count("left behind") == 2
    go.set()
    await until(lambda: threads[0] not in {it.ident for it in threading.enumerate()})


async def test_call_that_waits_for_its_turn_is_not_made_once_cancelled():
    """Nobody would know of it."""
    go, began, verified = threading.Event(), threading.Event(), []

    def service_actions(self):
        began.set()
        go.wait(10)

    hooks = {"service_actions": service_actions, "verify_request": lambda *_: verified.append(1)}
    server = theirs(kind=socketserver.TCPServer, **hooks)
    async with adopted(server, timeouts=Timeouts(handshake=0.05)) as it:
        assert await in_thread(began.wait, 5)
        await it.hangs_up()
        go.set()
    assert it.outcomes == ["timed_out"]
    assert verified == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", [socketserver.TCPServer, socketserver.ThreadingTCPServer])
async def test_thread_is_one_of_trios(kind):
    """Its request's cancellation is told to it, and to no other request; Trio can be called."""
    told = []

    async def answer():
        await trio.lowlevel.checkpoint()
        return b"42"

    def handler(request, client_address, server):
        request.sendall(trio.from_thread.run(answer))
        assert trioserver.current_request().client_address == client_address
        trio.from_thread.check_cancelled()
        cancelled = request.recv(1) == b"c"
        try:
            while cancelled:
                trio.from_thread.check_cancelled()
        except trio.Cancelled:
            told.append("cancelled")
            raise

    async with adopted(theirs(handler, kind), timeouts=Timeouts(request=0.5)) as it:
        for number, word in enumerate((b"c", b"x") * 2, 1):
            with it.client() as client:
                assert await in_thread(client.recv, 2) == b"42"
                await it.ends_with(client, word)
            await it.ended(number)
    assert it.outcomes == ["timed_out", "completed"] * 2
    assert told == ["cancelled"] * 2


async def test_thread_that_cannot_be_started(monkeypatch):
    """Its client is closed, and the next one is served."""

    def no_thread(*_):
        raise RuntimeError("can't start new thread")

    async with adopted(theirs(handle_error=lambda *_: None)) as it:
        with it.client(), monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            await it.ended()
        assert await it.ask() == b"HELLO\n"
    assert it.outcomes == ["failed", "completed"]
    assert "can't start new thread" in it.records[0].reason
