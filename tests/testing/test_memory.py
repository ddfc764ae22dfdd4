"""The network in memory: what a server can tell of a transport is what TCP tells it.

Most tests here run three times: in memory, over TCP on this machine, and over a
Unix socket pair.
"""

import copy
import errno
import fcntl
import itertools
import math
import os
import pickle
import random
import socket
import sys
import termios
import time
from collections.abc import Callable
from contextlib import asynccontextmanager
from functools import partial

import attrs
import pytest
import trio
import trio.testing
from support import Upper, connection_over, no_sockets, plain_client, read_to_end

import trioserver
from trioserver._sockets.binding import bind_ip, bind_unix
from trioserver._sockets.stream_sockets import SocketListener, SocketTransport
from trioserver.testing import MemoryListener, MemoryServer, memory_pipe

MEMORY = ("memory", 1)

Ends = tuple[trioserver.Transport, trioserver.Transport]
Pair = Callable[[], Ends]
Streams = tuple[trioserver.Connection, trioserver.Connection]


# Pairs of connected ends -----------------------------------------------------


def tcp_ends():
    """Two ends of a TCP connection, with buffers that do not grow."""
    with socket.socket() as listener:
        client = socket.socket()
        for sock in (listener, client):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65_536)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        client.connect(listener.getsockname())
        accepted, _ = listener.accept()
    return kernel_ends(accepted, client)


def kernel_ends(*sockets):
    """Two connected sockets as ends."""
    for sock in sockets:
        sock.setblocking(False)
    ours, theirs = map(SocketTransport, sockets)
    return ours, theirs


NETWORKS = {
    "memory": lambda: memory_pipe(1000),
    "tcp": tcp_ends,
    "unix": lambda: kernel_ends(*socket.socketpair()),
}
# For what is different on a Unix socket: there a peer's close is known at once.
ON_THE_INTERNET = pytest.mark.parametrize("pair", ["memory", "tcp"], indirect=True)


@pytest.fixture(params=NETWORKS)
async def pair(request):
    """Makes two connected ends of each network in turn: ours, and the peer's."""
    made = []

    def make():
        made.append(NETWORKS[request.param]())
        return made[-1]

    yield make
    for end in itertools.chain(*made):
        end.close()


@pytest.fixture
async def ends(pair):
    """One of them."""
    return pair()


@asynccontextmanager
async def waiting(wait):
    """For the length of a block somebody waits, who must be woken by it."""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            assert nursery.child_tasks
            yield


async def is_closed(wait):
    """Wait for what is closed meanwhile."""
    with pytest.raises(trio.ClosedResourceError):
        await wait()


async def receive(end, max_bytes=65_536):
    """The next bytes, however long they take."""
    with trio.fail_after(10):
        while (data := end.receive_now(max_bytes)) is None:
            await end.wait_readable()
        return data


async def receive_all(end):
    """Everything up to the end of input, and what kind of end that was."""
    received = bytearray()
    try:
        while data := await receive(end):
            received += data
    except ConnectionResetError:
        return bytes(received), "reset"
    return bytes(received), "end"


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
    if not isinstance(end, SocketTransport) or is_unix(end):
        return 0
    return queued(end.socket, termios.TIOCOUTQ) - queued(end.socket, SIOCOUTQNSD)


SIOCOUTQNSD = 0x894B  # Linux: like TIOCOUTQ, without what was sent already


def queued(sock, request):
    """Bytes of output that the kernel holds."""
    return int.from_bytes(fcntl.ioctl(sock, request, bytes(4)), sys.byteorder)


def is_unix(end):
    """Whether the end is a Unix socket."""
    return isinstance(end, SocketTransport) and end.socket.family == socket.AF_UNIX


# Bytes -----------------------------------------------------------------------


async def test_transport_moves_bytes_in_order(ends):
    """What is sent arrives, in order, in portions of any size."""
    ours, theirs = ends
    rng = random.Random(1)
    sent, received = rng.randbytes(20_000), bytearray()

    async def send():
        left = memoryview(sent)
        while left:
            left = left[theirs.send_now(left[: rng.randint(1, 700)]) :]
            await theirs.wait_writable()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            while len(received) < len(sent):
                received += await receive(ours, rng.randint(1, 700))
    assert bytes(received) == sent


async def test_transport_directions_are_apart(ends):
    """What one side sends never comes back to it; without input a receive says None, no end."""
    ours, theirs = ends
    assert ours.receive_now(10) is None
    ours.send_now(b"ours")
    theirs.send_now(b"theirs")
    assert await receive(ours) == b"theirs"
    assert await receive(theirs) == b"ours"
    assert (ours.receive_now(10), theirs.receive_now(10)) == (None, None)


async def test_transport_sends_bytes_like_objects(ends):
    """Bytes, bytearrays and memoryviews are sent, and copied: later changes do not matter."""
    ours, theirs = ends
    for data in (b"data", memoryview(b"data"), bytearray(b"data")):
        assert theirs.send_now(data) == 4
        if isinstance(data, bytearray):
            data[:] = b"gone"
        assert await receive(ours) == b"data"


# The end of input, and the peer is gone --------------------------------------


async def test_transport_end_of_input(pair):
    """After the peer's close comes what it had sent, then the end, as often as one asks.

    After the end of its output alone, ours still reaches it, and its own takes nothing more.
    """
    ours, theirs = pair()
    theirs.send_now(b"last words")
    theirs.close()
    assert await receive_all(ours) == (b"last words", "end")
    assert ours.receive_now(10) == b""
    ours, theirs = pair()
    theirs.send_eof()
    with pytest.raises(BrokenPipeError):
        theirs.send_now(b"x")
    assert await receive(ours) == b""
    ours.send_now(b"reply")
    ours.close()
    assert await receive_all(theirs) == (b"reply", "end")


@pytest.mark.parametrize("said", [b"", b"last words"])
async def test_transport_reset(pair, said):
    """A reset is an error, told once; after it there is only the end of input.

    Closing with unread input resets, too, and what was sent before arrives as far as it gets.
    A Unix socket has no resets of its own: there the peer reads an orderly end.
    """
    ours, theirs = pair()
    theirs.reset()
    assert await receive_all(ours) == (b"", "end" if is_unix(ours) else "reset")
    assert await receive_all(ours) == (b"", "end")
    ours, theirs = pair()
    ours.send_now(b"never read")
    await theirs.wait_readable()
    theirs.send_now(said)
    theirs.close()
    data, end = await receive_all(ours)
    assert said.startswith(data)
    assert end == "reset"
    assert await receive_all(ours) == (b"", "end")


@ON_THE_INTERNET
@pytest.mark.parametrize("first", ["receive", "send", "eof"])
async def test_transport_after_a_reset(ends, first):
    """Every send fails, output cannot be ended in order, and it is told once, by what comes first.

    What a send has told of a receive does not tell again.
    """
    ours, theirs = ends
    theirs.reset()
    await ours.wait_readable()
    if first == "receive":
        assert await receive_all(ours) == (b"", "reset")
    elif first == "send":
        with pytest.raises(ConnectionResetError):
            ours.send_now(b"x")
    if first != "eof":
        for _ in range(3):
            with pytest.raises(BrokenPipeError):
                ours.send_now(b"x")
        assert await receive_all(ours) == (b"", "end")
    with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
        ours.send_eof()


@ON_THE_INTERNET
async def test_transport_first_send_after_peers_close(pair):
    """It is taken: nobody knows yet that it was in vain. No bytes at all tell the peer nothing."""
    ours, theirs = pair()
    theirs.close()
    assert await receive(ours) == b""
    assert ours.send_now(b"into the void") == 13
    ours, theirs = pair()
    theirs.send_now(b"last words")
    theirs.close()
    for _ in range(3):
        assert ours.send_now(b"") == 0
    assert await receive_all(ours) == (b"last words", "end")


async def test_transport_sends_in_vain(pair):
    """They fail sooner or later, and then always; they may cost the last words, or their rest."""
    ours, theirs = pair()
    theirs.close()
    assert isinstance(await send_until_error(ours), ConnectionError)
    for _ in range(3):
        with pytest.raises(BrokenPipeError):
            ours.send_now(b"x")
    ours, theirs = pair()
    theirs.send_now(b"last words")
    theirs.close()
    await ours.wait_readable()
    await send_until_error(ours)
    data, _ = await receive_all(ours)
    assert b"last words".startswith(data)
    assert await receive_all(ours) == (b"", "end")


# Backpressure ----------------------------------------------------------------


async def test_transport_takes_a_bounded_amount(ends):
    """A peer that does not read stops us after a while, and then gets exactly what was taken."""
    ours, theirs = ends
    sent = await clog(ours)
    assert 1000 <= sent < 20_000_000
    assert ours.send_now(b"x") == 0
    ours.send_eof()
    data, end = await receive_all(theirs)
    assert (len(data), end) == (sent, "end")


async def test_transport_wait_writable_until_peer_reads(ends):
    """When nothing more is taken, the wait for it lasts until the peer has read."""
    ours, theirs = ends
    await clog(ours)
    with trio.move_on_after(0.01) as patience:
        await ours.wait_writable()
    assert patience.cancelled_caught
    theirs.send_now(b"still here")
    assert await receive(ours) == b"still here"  # input is not held up

    async def read_on(*, task_status):
        task_status.started()
        while True:
            await receive(theirs)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(read_on)
            await ours.wait_writable()
            nursery.cancel_scope.cancel()
    assert ours.send_now(b"x") == 1


async def test_pipe_holds_its_capacity():
    """In memory, the bound is exact, and one byte read makes room for one."""
    ours, theirs = memory_pipe(10)
    assert ours.send_now(b"0123456789abc") == 10
    assert ours.send_now(b"abc") == 0
    assert theirs.receive_now(1) == b"0"
    assert ours.send_now(b"abc") == 1
    assert theirs.receive_now(100) == b"123456789a"


# Waits -----------------------------------------------------------------------

Act = Callable[[trioserver.Transport], object]
PEERS_ACTS = {
    "data": lambda end: end.send_now(b"x"),
    "eof": lambda end: end.send_eof(),
    "close": lambda end: end.close(),
    "reset": lambda end: end.reset(),
}
CLOSES = {name: PEERS_ACTS[name] for name in ("close", "reset")}


@pytest.mark.parametrize("act", PEERS_ACTS.values(), ids=PEERS_ACTS)
async def test_transport_wait_readable_is_woken(ends, act):
    """Bytes, the end, a close and a reset all end a wait for input."""
    ours, theirs = ends
    async with waiting(ours.wait_readable):
        act(theirs)


@pytest.mark.parametrize("act", CLOSES.values(), ids=CLOSES)
async def test_transport_wait_writable_is_woken(ends, act):
    """A peer that goes away ends a wait for room, and the send then fails."""
    ours, theirs = ends
    await clog(ours)
    async with waiting(ours.wait_writable):
        act(theirs)
    assert isinstance(await send_until_error(ours), ConnectionError)


@pytest.mark.parametrize("act", CLOSES.values(), ids=CLOSES)
@pytest.mark.parametrize("wait", ["wait_readable", "wait_writable"])
async def test_transport_closed_while_waiting(ends, wait, act):
    """Closing our own end ends its waits with `trio.ClosedResourceError`."""
    ours, _ = ends
    await clog(ours)
    async with waiting(partial(is_closed, getattr(ours, wait))):
        act(ours)


@pytest.mark.parametrize("wait", ["wait_readable", "wait_writable"])
async def test_transport_wait_is_cancelled_without_a_trace(ends, wait):
    """A wait that is cancelled leaves nothing behind: the next one works."""
    ours, theirs = ends
    sent = await clog(ours)
    with trio.move_on_after(0):
        await getattr(ours, wait)()
    theirs.send_now(b"x")
    assert await receive(ours) == b"x"
    ours.send_eof()
    assert len((await receive_all(theirs))[0]) == sent


# Closing ---------------------------------------------------------------------


async def test_transport_closes_once(pair):
    """Closing and resetting again changes nothing; nor is what arrives then ever our error."""
    ours, theirs = pair()
    ours.close()
    ours.reset()
    ours.close()
    assert await receive_all(theirs) == (b"", "end")
    await send_until_error(theirs)
    ours.close()
    ours, theirs = pair()
    ours.close()
    theirs.close()
    assert (ours.fileno(), theirs.fileno()) == (-1, -1)


@ON_THE_INTERNET
async def test_transport_resets_once(ends):
    """After a reset, a close does not make it an orderly end."""
    ours, theirs = ends
    ours.reset()
    ours.close()
    ours.reset()
    assert await receive_all(theirs) == (b"", "reset")


# Trio's own contract ---------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
async def test_connection_is_a_half_closeable_stream(network):
    """CK-06: it keeps all that Trio asks of such a stream, also when it is clogged.

    This includes what Trio asks of a two-way stream.
    """
    # All are clogged beforehand, because TCP takes its time.
    clogged = [NETWORKS[network]() for _ in range(20)]

    def over_both(ends):
        ours, theirs = ends
        return connection_over(ours), connection_over(theirs)

    async def make():
        return over_both(NETWORKS[network]())

    async def make_clogged():
        return over_both(clogged.pop())

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for end in itertools.chain(*clogged):
                nursery.start_soon(clog, end)
        await trio.testing.check_half_closeable_stream(make, make_clogged)
    for end in itertools.chain(*clogged):
        end.close()


# Listeners -------------------------------------------------------------------


@attrs.frozen
class Place:
    """A listener, and what connects a client to it: the client's end."""

    listener: trioserver.Listener
    connect: Callable[[], trioserver.Transport]


def kernel_place(listener):
    """A listener on this machine, where to connect never takes long."""

    def connect():
        client = plain_client(listener.address)
        client.setblocking(False)
        return SocketTransport(client)

    return Place(listener, connect)


async def memory_place(folder):
    """A listener in memory."""
    listener = MemoryListener(MEMORY)
    return Place(listener, lambda: listener.connect_now()._transport)


async def tcp_place(folder):
    """A TCP listener."""
    (sock,) = await bind_ip("127.0.0.1", 0)
    return kernel_place(SocketListener(sock))


async def unix_place(folder):
    """A listener on a Unix socket."""
    sock, path = await bind_unix(folder / "s", mode=None, backlog=100)
    return kernel_place(SocketListener(sock, path=path))


@pytest.fixture(params=[memory_place, tcp_place, unix_place])
async def place(request, tmp_path):
    """A listener of each network in turn, which listens."""
    where = await request.param(tmp_path)
    where.listener.listen(100)
    yield where
    where.listener.close()


async def accept(listener):
    """The next client."""
    with trio.fail_after(10):
        while (accepted := listener.accept_now()) is None:
            await listener.wait_acceptable()
        return accepted[0]


async def test_listener_has_nobody(place):
    """Without a client, an accept says None; the wait for one lasts until one comes."""
    assert place.listener.accept_now() is None
    with trio.move_on_after(0.01) as patience:
        await place.listener.wait_acceptable()
    assert patience.cancelled_caught
    async with waiting(place.listener.wait_acceptable):
        client = place.connect()
    (await accept(place.listener)).close()
    client.close()


async def test_listener_accepts_in_order(place):
    """Clients are accepted in the order in which they came."""
    clients = [place.connect() for _ in range(5)]
    for number, client in enumerate(clients):
        client.send_now(b"%d" % number)
    for number, client in enumerate(clients):
        accepted = await accept(place.listener)
        assert await receive(accepted) == b"%d" % number
        accepted.close()
        client.close()


async def test_listener_accepts_whoever_has_left(place):
    """A client that spoke and left before it was accepted is accepted all the same."""
    client = place.connect()
    client.send_now(b"hello and goodbye")
    client.close()
    accepted = await accept(place.listener)
    assert await receive_all(accepted) == (b"hello and goodbye", "end")
    accepted.close()


async def test_listener_is_closed(place):
    """An accept that waits ends with an error, clients are refused; closing again is nothing."""
    async with waiting(partial(is_closed, partial(accept, place.listener))):
        place.listener.close()
    with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
        place.connect()
    place.listener.close()


@pytest.mark.parametrize("says", [b"", b"hello?"], ids=["nothing", "something"])
async def test_listener_close_resets_its_queue(place, says):
    """Clients that were never accepted are reset by the close, not left hanging."""
    client = place.connect()
    client.send_now(says)
    place.listener.close()
    assert await receive_all(client) == (b"", "reset")
    client.close()


async def test_memory_listener_connect_waits_for_the_queue():
    """A full queue makes clients wait, in order, until somebody is accepted."""
    listener, connected = MemoryListener(MEMORY), []
    listener.listen(1)

    async def connect(name):
        connected.append((await listener.connect((name, 1))).info.client_address[0])

    names = ["first", "second", "third"]
    async with trio.open_nursery() as nursery:
        for name in names:
            nursery.start_soon(connect, name)
            await trio.testing.wait_all_tasks_blocked()
        assert connected == names[:1]
        for number in (2, 3):
            listener.accept_now()
            await trio.testing.wait_all_tasks_blocked()
            assert connected == names[:number]


@pytest.fixture
async def full():
    """A listener whose queue is full: whoever cannot wait is refused, as before it listened."""
    listener = MemoryListener(MEMORY)
    with pytest.raises(ConnectionRefusedError):
        await listener.connect()
    listener.listen(1)
    listener.connect_now()
    with pytest.raises(ConnectionRefusedError):
        listener.connect_now()
    return listener


async def test_memory_listener_close_refuses_those_who_wait(full):
    """Clients that wait for room in the queue are refused when the listener closes."""

    async def expect_refusal():
        with pytest.raises(ConnectionRefusedError):
            await full.connect()

    async with waiting(expect_refusal), waiting(expect_refusal):
        full.close()


async def test_memory_listener_cancelled_connect_takes_no_place(full):
    """A client that gave up while it waited is never accepted."""
    with trio.move_on_after(0):
        await full.connect(("never", 1))
    assert full.accept_now() is not None
    assert full.accept_now() is None


async def test_memory_listener_wakes_the_next_after_one_gave_up(full):
    """Room in the queue goes to the next who waits when the first gives up in the same instant."""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as impatient:
                impatient.start_soon(full.connect, ("first", 1))
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(full.connect, ("second", 1))
                await trio.testing.wait_all_tasks_blocked()
                impatient.cancel_scope.cancel()
                full.accept_now()
            full.accept_now()  # whoever came first; nobody if "first" is gone


def through_pickle(server):
    """What another process gets."""
    copied = pickle.loads(pickle.dumps(server))  # noqa: S301  (our own)
    assert isinstance(copied, MemoryServer)
    return copied


# The server in memory --------------------------------------------------------


async def test_memory_server_opens_no_socket():
    """A server in memory serves without a socket; its clients wait as long as their test does."""
    with no_sockets():
        async with MemoryServer(MEMORY, Upper).serving() as server:
            client = await server.connect()
            await client.send_all(b"hello\n")
            await client.send_eof()
            assert await read_to_end(client) == b"HELLO\n"
            assert (server.socket, server.sockets) == (None, ())
            assert (client.idle_timeout, client.write_timeout) == (math.inf, math.inf)


async def test_memory_server_tells_addresses():
    """Handlers see the address that a client connected with, and its credentials."""
    seen = []

    async def look(request, address, server):
        seen.append((address, request.server_address, request.peer_credentials))

    me = trioserver.PeerCredentials(pid=1, uid=2, gid=3)
    async with MemoryServer(MEMORY, look).serving() as server:
        for who in ((("here", 5), me), ()):
            async with await server.connect(*who) as client:
                await read_to_end(client)
    assert seen == [(("here", 5), MEMORY, me), (("memory-client", 1), MEMORY, None)]


async def test_memory_server_runs_again():
    """Each run has a listener of its own, and between the runs there is none."""
    server = MemoryServer(MEMORY, Upper)
    listeners = []
    for _ in range(2):
        async with server.serving():
            listeners.append(server.listener)
        with pytest.raises(ConnectionRefusedError):
            await server.connect()
    assert listeners[0] is not listeners[1]
    with pytest.raises(ConnectionRefusedError):
        await listeners[0].connect()


async def test_memory_server_waits_a_day_at_once(
    autojump_clock,
):
    """A day of silence passes in no time, and ends on the second."""
    began = time.monotonic()
    day = 24 * 60 * 60.0
    timeouts = trioserver.Timeouts(idle=day)
    async with MemoryServer(MEMORY, Upper, timeouts=timeouts).serving() as server:
        connected = trio.current_time()
        assert await read_to_end(await server.connect()) == b""
        assert trio.current_time() - connected == day
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("copied", [trioserver.BaseServer.evolve, copy.copy, through_pickle])
async def test_memory_server_copies_are_unbound(
    copied,
):
    """A copy of a bound server is unbound: nobody connects to the first by way of the second."""
    server = MemoryServer(MEMORY, Upper)
    async with server:
        twin = copied(server)
        assert not hasattr(twin, "listener")


@pytest.mark.parametrize("backlog", [0, 1, None])
async def test_memory_server_queues_a_client(backlog):
    """However small the queue, one client fits, as with the kernel's."""
    server = MemoryServer(MEMORY, Upper, request_queue_size=backlog)
    async with server:
        server.listener.connect_now()
