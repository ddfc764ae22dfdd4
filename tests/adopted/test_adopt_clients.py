"""`adopt`: how their clients come in: by their own ``get_request``, their socket, and over TLS."""

import contextlib
import errno
import logging
import select
import socket
import socketserver
import ssl
import struct
import threading
from typing import ClassVar

import pytest
import trio
from support import plain_client, reset, until
from support.adopting import (
    THERE,
    adopted,
    ask_secretly,
    fails,
    in_thread,
    over_tls,
    served,
    theirs,
    tls_client,
)
from support.scenes import table
from support.threads import does

import trioserver
from trioserver import Limits, Timeouts
from trioserver._modes.adopted import listener as adopted_listener

pytestmark = pytest.mark.usefixtures("nothing_stays_open")

NO_TLS = b"this is not TLS" * 10


class Waits(socketserver.ThreadingTCPServer):
    """Its ``get_request`` waits for a word of the client's, and notes where."""

    request_queue_size = 10
    threads: ClassVar = []

    def get_request(self):
        sock, address = super().get_request()
        self.threads.append(threading.get_ident())
        if not sock.recv(1):
            sock.close()
            raise OSError("the client has not said a word")
        return sock, ["somebody", address]  # which does not hash


@contextlib.contextmanager
def clients_of(server, number):
    """So many clients, who are there before the server is."""
    with contextlib.ExitStack() as stack:
        address = server.server_address
        yield [stack.enter_context(plain_client(address)) for _ in range(number)]


async def test_silent_client_does_not_stop_trio(caplog):
    """It is in a thread, and waits no longer than ``timeouts.handshake``; that is told once."""
    server = theirs(kind=Waits, threads=[])
    with clients_of(server, 1) as [silent]:
        async with adopted(server, timeouts=Timeouts(handshake=0.2)) as it:
            await it.ends_with(silent)
            await it.ended()
            await it.hangs_up()
            assert await it.ask(b"?hello\n") == b"HELLO\n"
            await it.ended(3)
    assert it.outcomes == ["timed_out", "timed_out", "completed"]
    assert len(set(server.threads) - {threading.get_ident()}) == 1  # as ever: one after the other
    [told] = [it.getMessage() for it in caplog.records if it.levelno == logging.WARNING]
    assert told.startswith("Hooked.get_request did not end in time")


@pytest.mark.parametrize("how", ["a drain", "the grace", "a cancellation"])
async def test_who_is_in_get_request_and_who_waits_for_it(how):
    """Both were accepted: a drain serves them; the grace, or a cancellation, ends both waits."""
    drains = how == "a drain"
    server = theirs(kind=Waits, threads=[])
    with clients_of(server, 2) as clients, trio.CancelScope() as scope:
        async with adopted(server, timeouts=Timeouts(shutdown=5 if drains else 0.1)) as it:
            await until(lambda: server.threads)
            if how == "a cancellation":
                scope.cancel()
            await in_thread(server.shutdown)
            for client in clients if drains else []:
                client.sendall(b"?hello\n")
                client.shutdown(socket.SHUT_WR)
        assert [client.recv(100) for client in clients] == [b"HELLO\n" if drains else b""] * 2
    assert it.outcomes == ["completed" if drains else "cancelled"] * 2
    assert server.fileno() == -1


async def test_get_request_that_is_left_behind_closes_its_client(caplog):
    """It waits for something that nobody can end."""
    go = threading.Event()

    def get_request(self):
        answer = self.socket.accept()
        go.wait(10)
        return answer

    timeouts = Timeouts(handshake=0.05, cleanup=0.05)
    async with adopted(theirs(get_request=get_request), timeouts=timeouts) as it:
        with it.client():
            await it.ended()
    go.set()
    await until(lambda: "Hooked" not in {it.name for it in threading.enumerate()})
    assert it.outcomes == ["timed_out"]
    assert "go.wait(10)" in caplog.text


LEFT = ssl.SSLEOFError(ssl.SSL_ERROR_EOF, "the client left in the handshake")


@table(
    "error, accepts, outcome",
    {
        "it has closed it": (None, True, "disconnected"),
        "it has met the end in its handshake": (LEFT, True, "disconnected"),
        "it has declined": (OSError("no"), False, "disconnected"),
        "no `OSError`, which is logged": (ValueError("no"), True, "failed"),
        "there was nobody": (BlockingIOError(), False, ""),
        "it was interrupted": (InterruptedError(), False, ""),
    },
)
async def test_first_get_request_fails(error, accepts, outcome, caplog):
    """It costs that client its connection, if it means one, and the next one is served."""
    outcomes, calls = list(filter(None, [outcome, "completed"])), []

    def get_request(self):
        calls.append(self)
        answer = self.socket.accept() if accepts or len(calls) > 1 else None
        if len(calls) == 1:
            if accepts:
                answer[0].close()
            if error is not None:
                raise error
        return answer

    async with adopted(theirs(get_request=get_request)) as it:
        if outcome:
            await it.hangs_up()
        assert await it.ask() == b"HELLO\n"
        await it.ended(len(outcomes))
    assert it.outcomes == outcomes
    assert it.report.statistics.accept_errors == (outcome == "disconnected")
    assert ("ValueError: no" in caplog.text) == (outcome == "failed")


@pytest.mark.parametrize("kind", [socketserver.TCPServer, socketserver.ThreadingTCPServer])
async def test_get_request_is_called_when_somebody_is_there(kind):
    """As ever, so it may wait, also for its listener: not even a drain calls it for nobody."""
    somebody_was_there = []

    def get_request(self):
        somebody_was_there.append(bool(select.select([self.socket], [], [], 0.1)[0]))
        return self.socket.accept()

    async with adopted(theirs(kind=kind, get_request=get_request)) as it:
        for _ in range(3):
            assert await it.ask() == b"HELLO\n"
    assert somebody_was_there == [True] * 3


async def test_hooks_get_the_address_that_get_request_returned():
    """All of them; the record and the limits have that of the connection."""
    seen = []

    def note(self, request, client_address):
        seen.append(client_address)
        return True

    def finish_request(self, request, client_address):
        note(self, request, client_address)
        socketserver.TCPServer.finish_request(self, request, client_address)

    hooks = {"verify_request": note, "finish_request": finish_request, "handle_error": note}
    async with adopted(theirs(fails, Waits, **hooks)) as it:
        with it.client() as client:
            client.sendall(b"?")
            mine = client.getsockname()
            await it.ended()
    assert seen == [["somebody", mine]] * 3
    assert it.records[0].info.client_address == mine


@pytest.mark.parametrize("door", ["adopt", "get_request", "threads"])
async def test_time_outs_of_the_listener_are_those_of_its_connections(door):
    """The kernel hands them on, and there they would end a read that waits."""
    fiftieth = (socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 20_000))

    def get_request(self):
        sock, address = self.socket.accept()
        sock.setsockopt(*fiftieth)
        return sock, address

    if door == "threads":
        server = trioserver.ThreadingTCPServer(THERE, does("recv 1"), socket_options=[fiftieth])
    elif door == "adopt":
        server = theirs(does("recv 1"))
        server.socket.setsockopt(*fiftieth)
    else:
        server = theirs(does("recv 1"), get_request=get_request)
    async with served(server) as it:
        await it.hangs_up()
    assert it.outcomes == ["timed_out"]
    assert "0.02 s" in it.records[0].reason


async def test_server_that_is_closed_under_it_is_an_error():
    """Found when somebody comes, and said what it is; nobody else's descriptor is meant."""
    server = theirs()
    address, number = server.server_address, server.fileno()
    fault = r"TCPServer was closed while adopt\(\) served"
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match=fault)) as caught:
        async with adopted(server):
            await in_thread(server.server_close)
            with socket.create_server(THERE) as other:
                assert other.fileno() == number
                with plain_client(other.getsockname()):
                    await trio.lowlevel.wait_readable(other)
            plain_client(address).close()
            await trio.sleep_forever()
    [error] = caught.value.exceptions
    assert getattr(error, "errno", None) == errno.EBADF


async def test_listener_that_listens_no_more_is_an_error():
    """The one error of get_request that is not a client's."""
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="Invalid argument")):
        async with adopted(theirs()) as it:
            it.server.socket.shutdown(socket.SHUT_RDWR)
            await trio.sleep_forever()
    assert it.witness.names.count("accept_failed") == 1


# TLS ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [b"", NO_TLS], ids=["silent", "liar"])
@pytest.mark.parametrize("recipe", ["TCPServer", "ThreadingTCPServer", "listener"])
async def test_handshake(recipe, words, context, trusting):
    """By the usual recipes, a client that is silent, or lies, costs nobody else anything."""

    def get_request(self):
        sock, address = self.socket.accept()
        return context.wrap_socket(sock, server_side=True), address

    by_listener = recipe == "listener"
    kind = socketserver.ThreadingTCPServer if by_listener else getattr(socketserver, recipe)
    server = over_tls(context) if by_listener else theirs(kind=kind, get_request=get_request)
    with clients_of(server, 1) as [client]:
        async with adopted(server, timeouts=Timeouts(handshake=0.5, linger=0.1)) as it:
            client.sendall(words)
            await it.ended()
            if not words:
                await it.ends_with(client)
            for _ in range(2):
                answer = await in_thread(ask_secretly, trusting, server.server_address)
                assert answer == b"SECRET\n"
            await it.ended(3)
    failed = ("refused" if by_listener else "disconnected") if words else "timed_out"
    assert it.outcomes == [failed, "completed", "completed"]
    assert "get_request" in it.records[0].reason or (by_listener and words)
    assert "its TLS handshake" in it.records[0].reason or words
    assert it.report.statistics.accept_errors == bool(words and not by_listener)


async def test_handshake_within_their_own_time(context, trusting):
    """A time-out that get_request has set is what it is, and no client that has left."""

    class Impatient(socketserver.ThreadingTCPServer):
        def get_request(self):
            sock, address = super().get_request()
            sock.settimeout(0.2)
            return sock, address

    server = over_tls(context, kind=Impatient)
    with clients_of(server, 1) as [client]:
        async with adopted(server) as it:
            await it.ended()
            await it.ends_with(client)
    assert it.outcomes == ["timed_out"]
    assert it.records[0].reason == "TLS: no handshake within the time-out of get_request's socket"


async def test_object_that_shakes_hands_itself(context, trusting):
    """It hears of a client that does not agree, as ever: it may have something to clean up."""
    told = []

    class Shakes(socketserver.ThreadingTCPServer):
        def finish_request(self, request, client_address):
            try:
                request.do_handshake()
            except OSError:
                told.append("failed")
                raise
            told.append("agreed")
            super().finish_request(request, client_address)

    server = over_tls(context, kind=Shakes, do_handshake_on_connect=False)
    async with adopted(server) as it:
        assert await in_thread(ask_secretly, trusting, server.server_address) == b"SECRET\n"
        await it.ended()
        with it.client() as liar:
            liar.sendall(NO_TLS)
            await it.ended(2)
    assert told == ["agreed", "failed"]
    assert it.outcomes[0] == "completed"
    assert it.outcomes[1] in {"failed", "disconnected"}  # whichever it is for OpenSSL then


# Of a socket that ssl could not wrap, and left to itself.
@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
@pytest.mark.parametrize("words", [b"", b"GET / HTTP/1.0\r\n"])
async def test_client_that_is_gone_before_it_is_accepted(context, trusting, words):
    """With a word or without: it costs nobody else anything, as with serve_forever."""
    async with adopted(over_tls(context)) as it:

        def told():
            return it.witness.names.count("accept_failed") + it.outcomes.count("disconnected")

        for number in range(1, 4):
            # All in one turn of Trio's, so that the accept finds it gone.
            client = it.client()
            client.sendall(words)
            reset(client)
            await until(lambda number=number: told() == number)
        assert await in_thread(ask_secretly, trusting, it.server.server_address) == b"SECRET\n"
    failed = [event for event in it.witness.events if event[0] == "accept_failed"]
    assert all(isinstance(error, ConnectionError) for _, _, error in failed)


def _forwards(request, client_address, server):
    ours, elsewhere = socket.socketpair()
    elsewhere.close()
    with ours:
        ours.sendall(b"x")


_talks = does("sends 100_000_000")


@table(
    "handler, outcome, told",
    {
        "a client that vanishes is its own doing: handle_error, which prints, is not called": (
            *(_talks, "disconnected: the peer is gone", ""),
        ),
        "an error of another connection is the handler's, and says nothing of the client": (
            *(_forwards, "failed", "BrokenPipeError"),
        ),
    },
)
@pytest.mark.parametrize("secretly", [False, True], ids=["plain", "TLS"])
async def test_whose_error_it_is(secretly, handler, outcome, told, context, trusting, capsys):
    """With TLS as without."""
    async with adopted(over_tls(context, handler) if secretly else theirs(handler)) as it:

        def listens_for_a_moment():
            address = it.server.server_address
            client = tls_client(trusting, address) if secretly else plain_client(address)
            assert len(client.recv(10)) == (10 if handler is _talks else 0)
            reset(client)

        await in_thread(listens_for_a_moment)
        await it.ended()
    [record] = it.records
    assert f"{record.outcome}: {record.reason}".startswith(outcome)
    assert told in (printed := capsys.readouterr().err)
    assert bool(printed) == bool(told)


# Datagrams --------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["text", "object", "nothing"])
async def test_datagram_that_is_not_the_usual_pair(what):
    """What get_request makes of it is its handlers' affair."""
    letter, handled = object(), []

    def made_of(data, sock):
        return {"text": (data.decode(), sock), "object": letter, "nothing": ()}[what]

    def get_request(self):
        pair, client_address = socketserver.UDPServer.get_request(self)
        return made_of(*pair), client_address

    hooks = {"get_request": get_request, "finish_request": lambda _, *both: handled.append(both)}
    async with adopted(theirs(kind=socketserver.ThreadingUDPServer, **hooks)) as it:
        expected = made_of(b"hello", it.server.socket)
        with plain_client(it.server.server_address, socket.SOCK_DGRAM) as client:
            client.send(b"hello")
            await it.ended()
            assert handled == [(expected, client.getsockname())]
    assert it.outcomes == ["completed"]


async def test_handler_that_receives_the_next_datagram_itself():
    """One that is alone may, and waits for it as ever."""
    waits = threading.Event()

    def asks(request, client_address, server):
        waits.set()
        more, sender = request[1].recvfrom(100)
        request[1].sendto(more.upper(), sender)

    async with adopted(server := theirs(asks, socketserver.UDPServer)):
        with plain_client(server.server_address, socket.SOCK_DGRAM) as client:
            client.send(b"hello")
            assert await in_thread(waits.wait, 5)
            await trio.testing.wait_all_tasks_blocked(0.05)  # as long as it takes to be wrong
            client.send(b"and more")
            assert await in_thread(client.recv, 100) == b"AND MORE"


async def test_datagram_that_somebody_else_takes_is_not_waited_for(monkeypatch):
    """Between the look and the receive: Trio's own thread must not block."""
    with theirs(kind=socketserver.UDPServer) as server:
        listener = adopted_listener.AdoptedListener(server)
        monkeypatch.setattr(adopted_listener, "has_input", lambda _number: True)
        cut = threading.Timer(5, server.socket.shutdown, [socket.SHUT_RDWR])
        cut.start()
        assert listener.accept_now() is None
        assert cut.is_alive()
        cut.cancel()
        listener.close()


async def test_client_that_is_turned_away_does_not_block_trio(tmp_path):
    """When its queue is full, and nobody knows when it will look: another thread might wait."""
    go, is_full = threading.Event(), trio.Event()
    received = []

    async def sorry(request):
        for _ in range(1000):
            with trio.move_on_after(0.1) as patience:
                await request.reply(b"sorry")
            if patience.cancelled_caught:
                is_full.set()
                break
        await request.reply(b"at last")

    def receive_all():
        while not received or received[-1] != b"at last":
            received.append(client.recv(100))

    path = str(tmp_path / "socket")
    server = socketserver.ThreadingUnixDatagramServer(path, lambda *_: go.wait(10))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.bind(str(tmp_path / "client"))
        client.settimeout(5)
        rescue = threading.Timer(5, receive_all)
        rescue.start()
        async with adopted(server, limits=Limits(requests=1, when_full=sorry)):
            client.sendto(b"1", path)
            client.sendto(b"2", path)
            await is_full.wait()
            assert rescue.is_alive()
            rescue.cancel()
            assert not received
            await in_thread(receive_all)
            go.set()
    assert len(received) > 2
