"""The network in memory: what a server can tell of a transport is what TCP tells it.

Most tests here run three times: in memory, over TCP on this machine, and over a
Unix socket pair.
"""

import copy
import fcntl
import itertools
import math
import pickle
import socket
import sys
import termios
from contextlib import asynccontextmanager, nullcontext
from functools import partial

import pytest
import trio
import trio.testing
from support import Upper, connection_over, no_sockets, plain_client, read_to_end, until
from support.memory import MEMORY
from support.pipes import does, play
from support.scenes import table
from support.speaking import echo
from trio.testing import wait_all_tasks_blocked

import trioserver
from trioserver._sockets.binding import bind_ip, bind_unix
from trioserver._sockets.stream_sockets import SocketListener, SocketTransport
from trioserver.testing import Faults, MemoryListener, MemoryServer, memory_pipe, open_test_server


def tcp_ends():
    """Two ends of a TCP connection, with buffers that do not grow."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.socket()
        for sock in (listener, client):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        client.connect(listener.getsockname())
        return kernel_ends(listener.accept()[0], client)


def kernel_ends(*sockets):
    """Connected sockets as ends."""
    for sock in sockets:
        sock.setblocking(False)
    return tuple(map(SocketTransport, sockets))


NETWORKS = {
    "memory": lambda: memory_pipe(1000),
    "tcp": tcp_ends,
    "unix": lambda: kernel_ends(*socket.socketpair()),
}
ON_THE_INTERNET = pytest.mark.parametrize("ends", ["memory", "tcp"], indirect=True)


@pytest.fixture(params=NETWORKS)
async def ends(request):
    """Two connected ends of each network in turn: ours, and the peer's."""
    made = NETWORKS[request.param]()
    yield made
    for end in made:
        end.close()


@asynccontextmanager
async def waiting(wait, error=None):
    """For the length of a block somebody waits, who must be woken by it, or meet an error."""

    async def somebody():
        with pytest.raises(error) if error else nullcontext():
            await wait()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(somebody)
            await wait_all_tasks_blocked()
            assert nursery.child_tasks
            yield


async def receive(end):
    """The next bytes, however long they take."""
    with trio.fail_after(10):
        while (data := end.receive_now(65_536)) is None:
            await end.wait_readable()
        return data


async def receive_all(end):
    """Everything up to the end of input, and what kind of end that was."""
    received = b""
    try:
        while data := await receive(end):
            received += data
    except ConnectionResetError:
        return received, "reset"
    return received, "end"


async def send_until_error(end):
    """Send single bytes until that fails."""
    with trio.fail_after(10):
        while True:
            try:
                end.send_now(b"x")
            except OSError as error:
                return error
            await trio.lowlevel.checkpoint()


async def clog(end):
    """Send until nothing more is taken; how much that was."""
    sent = 0
    with trio.fail_after(10):
        while True:
            still = not in_flight(end)
            progress = end.send_now(bytes(65_536))
            sent += progress
            if still and not progress:
                return sent
            await trio.sleep(0 if progress else 0.001)


def in_flight(end):
    """Bytes that make room as soon as the peer's kernel has acknowledged them."""
    if not isinstance(end, SocketTransport) or end.socket.family == socket.AF_UNIX:
        return 0
    # SIOCOUTQNSD (Linux): like TIOCOUTQ, without what was sent already.
    queued, unsent = (fcntl.ioctl(end.socket, it, bytes(4)) for it in (termios.TIOCOUTQ, 0x894B))
    return int.from_bytes(queued, sys.byteorder) - int.from_bytes(unsent, sys.byteorder)


async def test_transport_sends_what_it_is_given(ends):
    """Bytes, bytearrays and memoryviews are sent, and copied: later changes do not matter.

    What one side sends never comes back to it; without input a receive says None, no end.
    """
    ours, theirs = ends
    assert ours.receive_now(10) is None
    ours.send_now(b"ours")
    for data in (b"data", memoryview(b"data"), bytearray(b"data")):
        assert theirs.send_now(data) == 4
        if isinstance(data, bytearray):
            data[:] = b"gone"
        assert await receive(ours) == b"data"
    assert await receive(theirs) == b"ours"
    assert (ours.receive_now(10), theirs.receive_now(10)) == (None, None)


class Line:
    """Two ends, for steps: those of ours as they are, those of the peer's with `they`."""

    def __init__(self, ours, theirs):
        self.ours, self.theirs = ours, theirs

    def they(self, name, *arguments):
        return getattr(self.theirs, name)(*arguments)

    async def gets(self):
        return await receive_all(self.ours)

    async def they_get(self):
        return await receive_all(self.theirs)

    async def they_fail(self):
        await send_until_error(self.theirs)


@table(
    "steps",
    {
        "after the peer's close comes what it had sent, then the end, as often as one asks": (
            "they 'send_now', b'last words'; they 'close'; gets -> (b'last words', 'end');"
            " receive_now 10 -> b''; gets -> (b'', 'end')"
        ),
        "after the end of its output ours still reaches it, and its own takes nothing more": (
            "they 'send_eof'; they 'send_now', b'x' -> BrokenPipeError; gets -> (b'', 'end');"
            " send_now b'reply' -> 5; close; they_get -> (b'reply', 'end')"
        ),
        "closing again changes nothing, nor is what arrives then ever our error": (
            "close; reset; close; they_get -> (b'', 'end'); they_fail; close; they 'close';"
            " fileno -> -1; they 'fileno' -> -1"
        ),
    },
)
async def test_transport(ends, steps):
    """In memory it is as with the kernel."""
    await play(steps, Line(*ends), ends[0])


@ON_THE_INTERNET
@table(
    "steps",
    {
        "a reset is told once, after it sends fail, and output cannot be ended in order": (
            "they 'reset'; gets -> (b'', 'reset'); gets -> (b'', 'end');"
            " send_now b'x' -> BrokenPipeError; send_eof -> OSError 'not connected'"
        ),
        "what a send has told of a reset a receive does not tell again": (
            "they 'reset'; wait_readable; send_now b'x' -> ConnectionResetError;"
            " send_now b'x' -> BrokenPipeError; send_now b'x' -> BrokenPipeError;"
            " gets -> (b'', 'end'); send_eof -> OSError 'not connected'"
        ),
        "a close after a reset does not make it an orderly end; nobody has to have noticed it": (
            "they 'reset'; they 'close'; they 'reset'; wait_readable;"
            " send_eof -> OSError 'not connected'; gets -> (b'', 'reset')"
        ),
        "the first send after a close is taken: nobody knows yet that it was in vain": (
            "they 'close'; gets -> (b'', 'end'); send_now b'into the void' -> 13"
        ),
        "no bytes at all tell the peer nothing": (
            "they 'send_now', b'last words'; they 'close'; send_now b'' -> 0; send_now b'' -> 0;"
            " gets -> (b'last words', 'end')"
        ),
    },
)
async def test_transport_on_the_internet(ends, steps):
    """What is different on a Unix socket: there a peer's close is known at once."""
    await play(steps, Line(*ends), ends[0])


@pytest.mark.parametrize("said", [b"", b"last words"])
@pytest.mark.parametrize("sends_in_vain", [True, False])
async def test_transport_breaks(ends, sends_in_vain, said):
    """Sends in vain fail sooner or later, and then always; a close with unread input resets.

    Both may cost the last words, or their rest.
    """
    ours, theirs = ends
    if not sends_in_vain:
        ours.send_now(b"never read")
        await theirs.wait_readable()
    theirs.send_now(said)
    theirs.close()
    if sends_in_vain:
        await ours.wait_readable()
        assert isinstance(await send_until_error(ours), ConnectionError)
        for _ in range(3):
            with pytest.raises(BrokenPipeError):
                ours.send_now(b"x")
    data, end = await receive_all(ours)
    assert said.startswith(data)
    assert sends_in_vain or end == "reset"
    assert await receive_all(ours) == (b"", "end")


async def test_transport_takes_a_bounded_amount(ends):
    """A peer that does not read stops us after a while, and then gets exactly what was taken.

    When nothing more is taken, the wait for it lasts until the peer has read. A wait that is
    cancelled leaves nothing behind: the next one works.
    """
    ours, theirs = ends
    sent = await clog(ours)
    assert 1000 <= sent < 20_000_000
    assert ours.send_now(b"x") == 0
    for wait in (ours.wait_readable, ours.wait_writable):
        with trio.move_on_after(0.01) as patience:
            await wait()
        assert patience.cancelled_caught
    theirs.send_now(b"still here")
    assert await receive(ours) == b"still here"  # input is not held up
    got = []

    async def read_all():
        got.append(await receive_all(theirs))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_all)
            await ours.wait_writable()
            assert ours.send_now(b"x") == 1
            ours.send_eof()
    assert got == [(bytes(sent) + b"x", "end")]


THEY_GO = ["they 'close'", "they 'reset'"]
WAITS = [
    *itertools.product(["wait_readable"], ["they 'send_eof'", "they 'send_now', b'x'"]),
    *itertools.product(["wait_readable", "wait_writable"], [*THEY_GO, "close", "reset"]),
]


@pytest.mark.parametrize(("wait", "step"), WAITS)
async def test_transport_wait_is_ended(ends, wait, step):
    """Bytes and the end end a wait for input; a close or a reset any, our own with an error."""
    ours, _ = ends
    await clog(ours)
    async with waiting(getattr(ours, wait), None if "they" in step else trio.ClosedResourceError):
        await play(step, Line(*ends), ours)
    if step in THEY_GO:
        assert isinstance(await send_until_error(ours), ConnectionError)


@pytest.mark.parametrize("network", NETWORKS)
async def test_connection_is_a_half_closeable_stream(network):
    """CK-06: it keeps all that Trio asks of such a stream, also when it is clogged.

    This includes what Trio asks of a two-way stream: bytes in order, in portions of any size.
    """
    # All are clogged beforehand, because TCP takes its time.
    clogged = [NETWORKS[network]() for _ in range(20)]

    async def make():
        return tuple(map(connection_over, NETWORKS[network]()))

    async def make_clogged():
        return tuple(map(connection_over, clogged.pop()))

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for end in itertools.chain(*clogged):
                nursery.start_soon(clog, end)
        await trio.testing.check_half_closeable_stream(make, make_clogged)
    for end in itertools.chain(*clogged):
        end.close()


# Listeners -------------------------------------------------------------------


@pytest.fixture(params=NETWORKS)
async def place(request, tmp_path):
    """A listener of each network in turn, which listens, and what connects a client to it."""
    if request.param == "memory":
        listener = MemoryListener(MEMORY)
    elif request.param == "tcp":
        listener = SocketListener(*await bind_ip("127.0.0.1", 0))
    else:
        sock, path = await bind_unix(tmp_path / "s", mode=None, backlog=100)
        listener = SocketListener(sock, path=path)

    def connect():
        if request.param == "memory":
            return listener.connect_now()._transport
        (client,) = kernel_ends(plain_client(listener.address))
        return client

    listener.listen(100)
    yield listener, connect
    listener.close()


async def accept(listener):
    """The next client."""
    with trio.fail_after(10):
        while (accepted := listener.accept_now()) is None:
            await listener.wait_acceptable()
        return accepted[0]


async def test_listener_accepts_in_order(place):
    """Clients are accepted in the order in which they came, also who has left before.

    Without a client, an accept says None; the wait for one lasts until one comes.
    """
    listener, connect = place
    assert listener.accept_now() is None
    with trio.move_on_after(0.01) as patience:
        await listener.wait_acceptable()
    assert patience.cancelled_caught
    async with waiting(listener.wait_acceptable):
        clients = [connect() for _ in range(5)]
    for number, client in enumerate(clients):
        client.send_now(b"%d" % number)
        if number % 2:
            client.close()
    for number, client in enumerate(clients):
        accepted = await accept(listener)
        client.close()
        assert await receive_all(accepted) == (b"%d" % number, "end")
        accepted.close()


async def test_listener_is_closed(place):
    """An accept that waits ends with an error, clients are refused; closing again is nothing."""
    listener, connect = place
    async with waiting(partial(accept, listener), trio.ClosedResourceError):
        listener.close()
    with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
        connect()
    listener.close()


async def test_listener_close_resets_its_queue(place):
    """Clients that were never accepted are not left hanging, whatever they have said."""
    listener, connect = place
    clients = connect(), connect()
    clients[0].send_now(b"hello?")
    listener.close()
    for client in clients:
        assert await receive_all(client) == (b"", "reset")
        client.close()


@pytest.fixture
async def full():
    """A listener whose queue is full, which has room for one at least: others are refused."""
    listener = MemoryListener(MEMORY)
    with pytest.raises(ConnectionRefusedError):
        await listener.connect()
    listener.listen(0)
    listener.connect_now()
    with pytest.raises(ConnectionRefusedError):
        listener.connect_now()
    return listener


async def test_memory_listener_connect_waits_for_the_queue(full):
    """In order, until somebody is accepted."""
    connected = []

    async def connect(name):
        connected.append((await full.connect((name, 1))).info.client_address[0])

    async with trio.open_nursery() as nursery:
        for name in ("first", "second"):
            nursery.start_soon(connect, name)
            await wait_all_tasks_blocked()
        for so_far in ([], ["first"], ["first", "second"]):
            assert connected == so_far
            full.accept_now()
            await wait_all_tasks_blocked()


async def test_memory_listener_connect_in_vain(full):
    """A client that gave up while it waited is never accepted; the close refuses those who wait."""
    with trio.move_on_after(0):
        await full.connect(("never", 1))
    assert full.accept_now() is not None
    assert full.accept_now() is None
    full.connect_now()
    refused = ConnectionRefusedError
    async with waiting(full.connect, refused), waiting(full.connect, refused):
        full.close()


async def test_memory_listener_wakes_the_next_after_one_gave_up(full):
    """Room in the queue goes to the next who waits when the first gives up in the same instant."""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery, trio.open_nursery() as impatient:
            impatient.start_soon(full.connect, ("first", 1))
            await wait_all_tasks_blocked()
            nursery.start_soon(full.connect, ("second", 1))
            await wait_all_tasks_blocked()
            impatient.cancel_scope.cancel()
            full.accept_now()
        full.accept_now()  # whoever came first; nobody if "first" is gone


# The server in memory --------------------------------------------------------


async def test_memory_server_tells_addresses():
    """Handlers see the address that a client connected with, and its credentials.

    There is no socket; clients wait as long as their test does.
    """
    seen = []

    async def look(request, address, server):
        seen.append((address, request.server_address, request.peer_credentials))

    me = trioserver.PeerCredentials(pid=1, uid=2, gid=3)
    with no_sockets():
        async with MemoryServer(MEMORY, look).serving() as server:
            for who in ((("here", 5), me), ()):
                async with await server.connect(*who) as client:
                    assert await read_to_end(client) == b""
                    assert (client.idle_timeout, client.write_timeout) == (math.inf, math.inf)
            assert (server.socket, server.sockets) == (None, ())
    assert seen == [(("here", 5), MEMORY, me), (("memory-client", 1), MEMORY, None)]


async def test_memory_server_runs_again():
    """Each run has a listener of its own, and between the runs there is none.

    A copy of a bound server is unbound: nobody connects to the first by way of the second.
    """
    server, listeners = MemoryServer(MEMORY, Upper), []
    for _ in range(2):
        async with server.serving():
            listeners.append(server.listener)
            pickled = pickle.loads(pickle.dumps(server))  # noqa: S301  (our own)
            for twin in (server.evolve(), copy.copy(server), pickled):
                assert not hasattr(twin, "listener")
        with pytest.raises(ConnectionRefusedError):
            await server.connect()
    assert listeners[0] is not listeners[1]
    with pytest.raises(ConnectionRefusedError):
        await listeners[0].connect()


# What a client meets --------------------------------------------------------


class Visit:
    """A client, and what it does that needs more than one call."""

    def __init__(self, client, server):
        self.client, self.server = client, server

    async def is_served(self):
        """Wait until the server is done with it, and a real network has told of that."""
        await until(lambda: any(self.server.statistics().outcomes.values()))
        await trio.sleep(0.02)

    async def sends_much(self):
        """More than any network holds on the way."""
        await self.client.send_all(bytes(50_000_000))

    async def beside_a_receive(self, name):
        """Do that while another task receives; raise what either meets."""
        errors = []

        async def note(operation):
            try:
                await operation()
            except Exception as error:  # noqa: BLE001  (that is the question)
                errors.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(note, self.client.receive_some)
            await trio.sleep(0.05)
            await note(getattr(self.client, name))
            nursery.cancel_scope.cancel()
        raise errors[0]


ENDS = "receive_some -> b''; receive_some -> b''"
BREAKS = f"receive_some -> BrokenResourceError; {ENDS}"
LEFT = "send_all b'too much'; is_served; "
AGAIN = "receive_some -> BrokenResourceError; send_all b'x' -> BrokenResourceError"
HALF = "send_all b'x'; send_eof; receive_some -> b'x'; receive_some -> b''; send_eof -> None; "
CLOSES = "beside_a_receive 'aclose' -> ClosedResourceError; send_all b'' -> ClosedResourceError; "
PORTIONS = "send_all b'abcdef'; receive_some 2 -> b'ab'; send_all b'' -> None; "
BUSY = "beside_a_receive 'receive_some' -> BusyResourceError"
hello, resets, greets = does("sendall b'hello'"), does("reset"), does("sendall b'hello'; reset")
reads_little, replies = does("recv 1"), does("recv 1; sendall b'reply'")


@table(
    ("handler", "steps"),
    {
        "an end, again and again": (hello, f"is_served; receive_some -> b'hello'; {ENDS}"),
        "a reset": (resets, f"is_served; {BREAKS}"),
        "a reset after a word": (greets, f"is_served; receive_some -> b'hello'; {BREAKS}"),
        "a reset, and a send": (resets, f"is_served; {AGAIN}"),
        "input left": (reads_little, LEFT + BREAKS),
        "input left after a reply": (replies, f"{LEFT}receive_some -> b'reply'; {BREAKS}"),
        "nobody reads": (reads_little, "sends_much -> BrokenResourceError"),
        "half a close": (echo, f"{HALF}send_all b'x' -> ClosedResourceError"),
        "its own close": (echo, f"{CLOSES}receive_some -> ClosedResourceError"),
        "portions": (echo, PORTIONS + "receive_some 100 -> b'cdef'; receive_some 0 -> ValueError"),
        "two tasks": (echo, BUSY),
    },
)
@pytest.mark.parametrize("faulty", [False, True], ids=["straight", "through a relay"])
@pytest.mark.parametrize("transport", ["memory", "tcp"])
async def test_client_meets_the_same(transport, faulty, handler, steps):
    """Bytes, ends and errors, on either kind of network, with and without a relay."""
    straight = transport == "memory" and not faulty
    kind = MemoryServer if straight else trioserver.TCPServer
    server = kind(("127.0.0.1", 0), handler, timeouts=trioserver.Timeouts(linger=0))
    with trio.fail_after(10):
        if straight:
            async with server.serving(grace=0), await server.connect() as client:
                await play(steps, Visit(client, server), client)
            return
        faults = Faults() if faulty else None
        wrong = {"transport": transport, "faults": faults, "strict": False}
        async with open_test_server(server, **wrong) as running:
            client = await running.connect()
            await play(steps, Visit(client, server), client)
