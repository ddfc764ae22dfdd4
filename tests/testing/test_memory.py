"""The network in memory: what a server can tell of a transport is what TCP tells it.

Most tests here run three times: in memory, over TCP on this machine, and over a
Unix socket pair.
"""

from __future__ import annotations

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
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing
from support import Upper, connection_over, read_to_end

import trioserver
from trioserver._sockets.binding import bind_ip, bind_unix
from trioserver._sockets.stream_sockets import SocketListener, SocketTransport
from trioserver.testing import MemoryListener, MemoryServer, memory_pipe

Ends = tuple[trioserver.Transport, trioserver.Transport]
Streams = tuple[trioserver.Connection, trioserver.Connection]


# Pairs of connected ends -----------------------------------------------------


def memory_ends() -> Ends:
    """Two ends of a small pipe."""
    return memory_pipe(1000)


def tcp_ends() -> Ends:
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


def unix_ends() -> Ends:
    """Two ends of a Unix socket pair."""
    return kernel_ends(*socket.socketpair())


def kernel_ends(*sockets: socket.socket) -> Ends:
    """Two connected sockets as ends."""
    for sock in sockets:
        sock.setblocking(False)
    ours, theirs = map(SocketTransport, sockets)
    return ours, theirs


NETWORKS: dict[str, Callable[[], Ends]] = {
    "memory": memory_ends,
    "tcp": tcp_ends,
    "unix": unix_ends,
}


@pytest.fixture(params=NETWORKS)
async def ends(request: pytest.FixtureRequest) -> AsyncIterator[Ends]:
    """Two connected ends of each network in turn: ours, and the peer's."""
    both = NETWORKS[request.param]()
    yield both
    for end in both:
        end.close()


@pytest.fixture(params=["memory", "tcp"])
async def internet_ends(request: pytest.FixtureRequest) -> AsyncIterator[Ends]:
    """The same, for what is different on a Unix socket: there a peer's close is known at once."""
    both = NETWORKS[request.param]()
    yield both
    for end in both:
        end.close()


async def receive(end: trioserver.Transport, max_bytes: int = 65_536) -> bytes:
    """The next bytes, however long they take."""
    with trio.fail_after(10):
        while (data := end.receive_now(max_bytes)) is None:
            await end.wait_readable()
        return data


async def receive_all(end: trioserver.Transport) -> tuple[bytes, str]:
    """Everything up to the end of input, and what kind of end that was."""
    received = bytearray()
    try:
        while data := await receive(end):
            received += data
    except ConnectionResetError:
        return bytes(received), "reset"
    return bytes(received), "end"


async def send_until_error(end: trioserver.Transport) -> OSError:
    """Send single bytes until that fails."""
    with trio.fail_after(10):
        while True:
            try:
                end.send_now(b"x")
            except OSError as error:
                return error
            await trio.lowlevel.checkpoint()


async def clog(end: trioserver.Transport) -> int:
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


def in_flight(end: trioserver.Transport) -> int:
    """Bytes that make room as soon as the peer's kernel has acknowledged them."""
    if not isinstance(end, SocketTransport) or is_unix(end):
        return 0
    return queued(end.socket, termios.TIOCOUTQ) - queued(end.socket, SIOCOUTQNSD)


SIOCOUTQNSD = 0x894B  # Linux: like TIOCOUTQ, without what was sent already


def queued(sock: socket.socket, request: int) -> int:
    """Bytes of output that the kernel holds."""
    return int.from_bytes(fcntl.ioctl(sock, request, bytes(4)), sys.byteorder)


def is_unix(end: trioserver.Transport) -> bool:
    """Whether the end is a Unix socket."""
    return isinstance(end, SocketTransport) and end.socket.family == socket.AF_UNIX


# Bytes -----------------------------------------------------------------------


async def test_transport_moves_bytes_in_order(ends: Ends) -> None:
    """What is sent arrives, in order, in portions of any size."""
    ours, theirs = ends
    rng = random.Random(1)
    sent, received = rng.randbytes(20_000), bytearray()

    async def send() -> None:
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


async def test_transport_has_nothing_yet(ends: Ends) -> None:
    """Without input, a receive says None: that is not the end."""
    ours, _ = ends
    assert ours.receive_now(10) is None


async def test_transport_directions_are_apart(ends: Ends) -> None:
    """What one side sends never comes back to it."""
    ours, theirs = ends
    ours.send_now(b"ours")
    theirs.send_now(b"theirs")
    assert await receive(ours) == b"theirs"
    assert await receive(theirs) == b"ours"
    assert (ours.receive_now(10), theirs.receive_now(10)) == (None, None)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
async def test_transport_sends_bytes_like_objects(
    ends: Ends, kind: Callable[[bytes], bytes | bytearray | memoryview]
) -> None:
    """Bytes, bytearrays and memoryviews are sent, and copied: later changes do not matter."""
    ours, theirs = ends
    data = kind(b"data")
    assert theirs.send_now(data) == 4
    if isinstance(data, bytearray):
        data[:] = b"gone"
    assert await receive(ours) == b"data"


# The end of input ------------------------------------------------------------


async def test_transport_end_of_input(ends: Ends) -> None:
    """After the peer's close comes what it had sent, then the end, as often as one asks."""
    ours, theirs = ends
    theirs.send_now(b"last words")
    theirs.close()
    assert await receive_all(ours) == (b"last words", "end")
    assert ours.receive_now(10) == b""


async def test_transport_half_close(ends: Ends) -> None:
    """After the peer's end of output, our output still reaches it."""
    ours, theirs = ends
    theirs.send_eof()
    assert await receive(ours) == b""
    ours.send_now(b"reply")
    ours.close()
    assert await receive_all(theirs) == (b"reply", "end")


async def test_transport_send_after_own_eof(ends: Ends) -> None:
    """Output that was ended takes nothing more, and says so."""
    ours, _ = ends
    ours.send_eof()
    with pytest.raises(BrokenPipeError):
        ours.send_now(b"x")


# The peer is gone ------------------------------------------------------------


async def test_transport_reset(ends: Ends) -> None:
    """A reset is an error, told once; after it there is only the end of input.

    A Unix socket has no resets of its own: there the peer reads an orderly end.
    """
    ours, theirs = ends
    theirs.reset()
    expected = "end" if is_unix(ours) else "reset"
    assert await receive_all(ours) == (b"", expected)
    assert await receive_all(ours) == (b"", "end")


async def test_transport_close_with_unread_input_resets(ends: Ends) -> None:
    """Closing with input that was not read resets the connection, on every network."""
    ours, theirs = ends
    ours.send_now(b"never read")
    await theirs.wait_readable()
    theirs.close()
    assert await receive_all(ours) == (b"", "reset")
    assert await receive_all(ours) == (b"", "end")


async def test_transport_reset_overtakes_data(ends: Ends) -> None:
    """What was sent before a reset arrives as far as it gets: a part of it, from the beginning."""
    ours, theirs = ends
    ours.send_now(b"never read")
    await theirs.wait_readable()
    theirs.send_now(b"last words")
    theirs.close()
    data, end = await receive_all(ours)
    assert b"last words".startswith(data)
    assert end == "reset"


@pytest.mark.parametrize("read_it_first", [True, False])
async def test_transport_send_after_reset(internet_ends: Ends, *, read_it_first: bool) -> None:
    """Once the peer has reset the connection, every send fails."""
    ours, theirs = internet_ends
    theirs.reset()
    await ours.wait_readable()
    if read_it_first:
        assert await receive_all(ours) == (b"", "reset")
    for _ in range(3):
        with pytest.raises(ConnectionError):
            ours.send_now(b"x")


async def test_transport_tells_a_reset_once(internet_ends: Ends) -> None:
    """A reset that a send has told of is not told again by a receive."""
    ours, theirs = internet_ends
    theirs.reset()
    await ours.wait_readable()
    with pytest.raises(ConnectionResetError):
        ours.send_now(b"x")
    with pytest.raises(BrokenPipeError):
        ours.send_now(b"x")
    assert await receive_all(ours) == (b"", "end")


async def test_transport_eof_after_reset(internet_ends: Ends) -> None:
    """Output cannot be ended in order once the peer has reset the connection."""
    ours, theirs = internet_ends
    theirs.reset()
    await ours.wait_readable()
    with pytest.raises(OSError, match=os.strerror(errno.ENOTCONN)):
        ours.send_eof()


async def test_transport_first_send_after_peers_close(internet_ends: Ends) -> None:
    """The first send to a peer that has closed is taken: nobody knows yet that it was in vain."""
    ours, theirs = internet_ends
    theirs.close()
    assert await receive(ours) == b""
    assert ours.send_now(b"into the void") == 13


async def test_transport_last_words_after_a_send_in_vain(ends: Ends) -> None:
    """Sending to a peer that has closed may cost its last words, or the rest of them."""
    ours, theirs = ends
    theirs.send_now(b"last words")
    theirs.close()
    await ours.wait_readable()
    await send_until_error(ours)
    data, _ = await receive_all(ours)
    assert b"last words".startswith(data)
    assert await receive_all(ours) == (b"", "end")


async def test_transport_send_after_peers_close(ends: Ends) -> None:
    """Sends to a peer that has closed fail sooner or later, and from then on always."""
    ours, theirs = ends
    theirs.close()
    assert isinstance(await send_until_error(ours), ConnectionError)
    for _ in range(3):
        with pytest.raises(BrokenPipeError):
            ours.send_now(b"x")


async def test_transport_send_of_nothing_after_peers_close(internet_ends: Ends) -> None:
    """Sending no bytes tells the peer nothing, so it cannot answer with a reset."""
    ours, theirs = internet_ends
    theirs.send_now(b"last words")
    theirs.close()
    for _ in range(3):
        assert ours.send_now(b"") == 0
    assert await receive_all(ours) == (b"last words", "end")


# Backpressure ----------------------------------------------------------------


async def test_transport_takes_a_bounded_amount(ends: Ends) -> None:
    """A peer that does not read stops us after a while, and then gets exactly what was taken."""
    ours, theirs = ends
    sent = await clog(ours)
    assert 1000 <= sent < 20_000_000
    assert ours.send_now(b"x") == 0
    ours.send_eof()
    data, end = await receive_all(theirs)
    assert (len(data), end) == (sent, "end")


async def test_transport_wait_writable_until_peer_reads(ends: Ends) -> None:
    """When nothing more is taken, the wait for it lasts until the peer has read."""
    ours, theirs = ends
    await clog(ours)
    with trio.move_on_after(0.01) as patience:
        await ours.wait_writable()
    assert patience.cancelled_caught

    async def read_on(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        while True:
            await receive(theirs)

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            await nursery.start(read_on)
            await ours.wait_writable()
            nursery.cancel_scope.cancel()
    assert ours.send_now(b"x") == 1


async def test_transport_clogged_direction_leaves_the_other_alone(ends: Ends) -> None:
    """Output that is stuck does not hold up input."""
    ours, theirs = ends
    await clog(ours)
    theirs.send_now(b"still here")
    assert await receive(ours) == b"still here"


async def test_pipe_holds_its_capacity() -> None:
    """In memory, the bound is exact, and one byte read makes room for one."""
    ours, theirs = memory_pipe(10)
    assert ours.send_now(b"0123456789abc") == 10
    assert ours.send_now(b"abc") == 0
    assert theirs.receive_now(1) == b"0"
    assert ours.send_now(b"abc") == 1
    assert theirs.receive_now(100) == b"123456789a"


# Waits -----------------------------------------------------------------------

Act = Callable[[trioserver.Transport], object]
PEERS_ACTS: dict[str, Act] = {
    "data": lambda end: end.send_now(b"x"),
    "eof": lambda end: end.send_eof(),
    "close": lambda end: end.close(),
    "reset": lambda end: end.reset(),
}
CLOSES: dict[str, Act] = {name: PEERS_ACTS[name] for name in ("close", "reset")}


@pytest.mark.parametrize("act", PEERS_ACTS.values(), ids=PEERS_ACTS)
async def test_transport_wait_readable_is_woken(ends: Ends, act: Act) -> None:
    """Bytes, the end, a close and a reset all end a wait for input."""
    ours, theirs = ends
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.wait_readable)
            await trio.testing.wait_all_tasks_blocked()
            assert nursery.child_tasks
            act(theirs)


@pytest.mark.parametrize("act", CLOSES.values(), ids=CLOSES)
async def test_transport_wait_writable_is_woken(ends: Ends, act: Act) -> None:
    """A peer that goes away ends a wait for room, and the send then fails."""
    ours, theirs = ends
    await clog(ours)
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.wait_writable)
            await trio.testing.wait_all_tasks_blocked()
            assert nursery.child_tasks
            act(theirs)
    assert isinstance(await send_until_error(ours), ConnectionError)


@pytest.mark.parametrize("act", CLOSES.values(), ids=CLOSES)
@pytest.mark.parametrize("wait", ["wait_readable", "wait_writable"])
async def test_transport_closed_while_waiting(ends: Ends, wait: str, act: Act) -> None:
    """Closing our own end ends its waits with `trio.ClosedResourceError`."""
    ours, _ = ends
    await clog(ours)

    async def expect_closed() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await getattr(ours, wait)()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect_closed)
            await trio.testing.wait_all_tasks_blocked()
            act(ours)


@pytest.mark.parametrize("wait", ["wait_readable", "wait_writable"])
async def test_transport_wait_is_cancelled_without_a_trace(ends: Ends, wait: str) -> None:
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


async def test_transport_closes_once(ends: Ends) -> None:
    """Closing and resetting again, in whatever order, changes nothing."""
    ours, theirs = ends
    ours.close()
    ours.reset()
    ours.close()
    assert await receive_all(theirs) == (b"", "end")


async def test_transport_resets_once(internet_ends: Ends) -> None:
    """After a reset, a close does not make it an orderly end."""
    ours, theirs = internet_ends
    ours.reset()
    ours.close()
    ours.reset()
    assert await receive_all(theirs) == (b"", "reset")


async def test_transport_both_close_at_once(ends: Ends) -> None:
    """Two closes in the same instant harm nobody."""
    ours, theirs = ends
    ours.close()
    theirs.close()
    assert (ours.fileno(), theirs.fileno()) == (-1, -1)


async def test_transport_data_for_a_closed_end(ends: Ends) -> None:
    """What arrives after a close is never an error of the side that closed."""
    ours, theirs = ends
    ours.close()
    await send_until_error(theirs)
    ours.close()


# Trio's own contract ---------------------------------------------------------


@pytest.mark.parametrize("network", NETWORKS)
async def test_connection_is_a_half_closeable_stream(network: str) -> None:
    """CK-06: it keeps all that Trio asks of such a stream, also when it is clogged.

    This includes what Trio asks of a two-way stream.
    """
    # All are clogged beforehand, because TCP takes its time.
    clogged = [NETWORKS[network]() for _ in range(20)]

    def over_both(ends: Ends) -> Streams:
        ours, theirs = ends
        return connection_over(ours), connection_over(theirs)

    async def make() -> Streams:
        return over_both(NETWORKS[network]())

    async def make_clogged() -> Streams:
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


async def memory_place(folder: Path) -> Place:
    """A listener in memory."""
    listener = MemoryListener(("memory", 1))
    return Place(listener, lambda: listener.connect_now()._transport)


async def tcp_place(folder: Path) -> Place:
    """A TCP listener on this machine."""
    (sock,) = await bind_ip("127.0.0.1", 0)
    listener = SocketListener(sock)
    return Place(listener, partial(kernel_client, listener.address))


async def unix_place(folder: Path) -> Place:
    """A listener on a Unix socket."""
    sock, path = await bind_unix(folder / "s", mode=None, backlog=100)
    listener = SocketListener(sock, path=path)
    return Place(listener, partial(kernel_client, listener.address))


def kernel_client(address: object) -> trioserver.Transport:
    """A client that has connected: on this machine that never takes long."""
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    client = socket.socket(family)
    try:
        client.connect(address)
    except OSError:
        client.close()
        raise
    client.setblocking(False)
    return SocketTransport(client)


@pytest.fixture(params=[memory_place, tcp_place, unix_place])
async def place(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Place]:
    """A listener of each network in turn, which listens."""
    where: Place = await request.param(tmp_path)
    where.listener.listen(100)
    yield where
    where.listener.close()


async def accept(listener: trioserver.Listener) -> trioserver.Transport:
    """The next client."""
    with trio.fail_after(10):
        while (accepted := listener.accept_now()) is None:
            await listener.wait_acceptable()
        return accepted[0]


async def test_listener_has_nobody(place: Place) -> None:
    """Without a client, an accept says None, and the wait for one lasts."""
    assert place.listener.accept_now() is None
    with trio.move_on_after(0.01) as patience:
        await place.listener.wait_acceptable()
    assert patience.cancelled_caught


async def test_listener_accepts_in_order(place: Place) -> None:
    """Clients are accepted in the order in which they came."""
    clients = [place.connect() for _ in range(5)]
    for number, client in enumerate(clients):
        client.send_now(b"%d" % number)
    for number, client in enumerate(clients):
        accepted = await accept(place.listener)
        assert await receive(accepted) == b"%d" % number
        accepted.close()
        client.close()


async def test_listener_wakes_for_a_client(place: Place) -> None:
    """A client ends the wait for one."""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(place.listener.wait_acceptable)
            await trio.testing.wait_all_tasks_blocked()
            client = place.connect()
    (await accept(place.listener)).close()
    client.close()


async def test_listener_accepts_whoever_has_left(place: Place) -> None:
    """A client that spoke and left before it was accepted is accepted all the same."""
    client = place.connect()
    client.send_now(b"hello and goodbye")
    client.close()
    accepted = await accept(place.listener)
    assert await receive_all(accepted) == (b"hello and goodbye", "end")
    accepted.close()


async def test_listener_refuses_after_close(place: Place) -> None:
    """From the close on, clients are refused."""
    place.listener.close()
    with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
        place.connect()


@pytest.mark.parametrize("says", [b"", b"hello?"], ids=["nothing", "something"])
async def test_listener_close_resets_its_queue(place: Place, says: bytes) -> None:
    """Clients that were never accepted are reset by the close, not left hanging."""
    client = place.connect()
    client.send_now(says)
    place.listener.close()
    assert await receive_all(client) == (b"", "reset")
    client.close()


async def test_listener_closed_while_waiting(place: Place) -> None:
    """An accept that waits when the listener is closed ends with `trio.ClosedResourceError`."""

    async def expect_closed() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await accept(place.listener)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_closed)
        await trio.testing.wait_all_tasks_blocked()
        place.listener.close()


async def test_listener_closes_once(place: Place) -> None:
    """Closing again changes nothing."""
    place.listener.close()
    place.listener.close()


async def test_memory_listener_refuses_before_it_listens() -> None:
    """Bound is not listening."""
    with pytest.raises(ConnectionRefusedError):
        await MemoryListener(("memory", 1)).connect()


async def test_memory_listener_connect_waits_for_the_queue() -> None:
    """A full queue makes clients wait, in order, until somebody is accepted."""
    listener, connected = MemoryListener(("memory", 1)), []
    listener.listen(1)

    async def connect(name: str) -> None:
        connected.append((await listener.connect((name, 1))).info.client_address[0])

    async with trio.open_nursery() as nursery:
        for name in ("first", "second", "third"):
            nursery.start_soon(connect, name)
            await trio.testing.wait_all_tasks_blocked()
        assert connected == ["first"]
        for expected in (["first", "second"], ["first", "second", "third"]):
            listener.accept_now()
            await trio.testing.wait_all_tasks_blocked()
            assert connected == expected


async def test_memory_listener_connect_now_does_not_wait() -> None:
    """Whoever cannot wait is refused when the queue is full."""
    listener = MemoryListener(("memory", 1))
    listener.listen(1)
    listener.connect_now()
    with pytest.raises(ConnectionRefusedError):
        listener.connect_now()


async def test_memory_listener_close_refuses_those_who_wait() -> None:
    """Clients that wait for room in the queue are refused when the listener closes."""
    listener = MemoryListener(("memory", 1))
    listener.listen(1)
    listener.connect_now()

    async def expect_refusal() -> None:
        with trio.fail_after(10), pytest.raises(ConnectionRefusedError):
            await listener.connect()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect_refusal)
        nursery.start_soon(expect_refusal)
        await trio.testing.wait_all_tasks_blocked()
        listener.close()


async def test_memory_listener_cancelled_connect_takes_no_place() -> None:
    """A client that gave up while it waited is never accepted."""
    listener = MemoryListener(("memory", 1))
    listener.listen(1)
    listener.connect_now()
    with trio.move_on_after(0):
        await listener.connect(("never", 1))
    assert listener.accept_now() is not None
    assert listener.accept_now() is None


async def test_memory_listener_wakes_the_next_after_one_gave_up() -> None:
    """Room in the queue goes to the next who waits when the first gives up in the same instant."""
    listener = MemoryListener(("memory", 1))
    listener.listen(1)
    listener.connect_now()
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            async with trio.open_nursery() as impatient:
                impatient.start_soon(listener.connect, ("first", 1))
                await trio.testing.wait_all_tasks_blocked()
                nursery.start_soon(listener.connect, ("second", 1))
                await trio.testing.wait_all_tasks_blocked()
                impatient.cancel_scope.cancel()
                listener.accept_now()
            listener.accept_now()  # whoever came first; nobody if "first" is gone


def through_pickle(server: MemoryServer) -> MemoryServer:
    """What another process gets."""
    copied = pickle.loads(pickle.dumps(server))  # noqa: S301  (our own)
    assert isinstance(copied, MemoryServer)
    return copied


# The server in memory --------------------------------------------------------


async def test_memory_server_opens_no_socket(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server in memory serves without a socket."""

    def refuse(*arguments: object) -> None:
        raise AssertionError("a socket was made")

    monkeypatch.setattr(socket.socket, "__init__", refuse)
    async with MemoryServer(("memory", 1), Upper).serving() as server:
        client = await server.connect()
        await client.send_all(b"hello\n")
        await client.send_eof()
        assert await read_to_end(client) == b"HELLO\n"
        assert (server.socket, server.sockets) == (None, ())


async def test_memory_server_tells_addresses() -> None:
    """Handlers see the address that a client connected with, and its credentials."""
    seen = []

    async def look(request: trioserver.Connection, address: object, server: object) -> None:
        seen.append((address, request.server_address, request.peer_credentials))

    me = trioserver.PeerCredentials(pid=1, uid=2, gid=3)
    async with MemoryServer(("memory", 1), look).serving() as server:
        for who in ((("here", 5), me), ()):
            async with await server.connect(*who) as client:
                await read_to_end(client)
    here, memory = ("here", 5), ("memory", 1)
    assert seen == [(here, memory, me), (("memory-client", 1), memory, None)]


async def test_memory_server_runs_again() -> None:
    """Each run has a listener of its own, and between the runs there is none."""
    server = MemoryServer(("memory", 1), Upper)
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
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A day of silence passes in no time, and ends on the second."""
    began = time.monotonic()
    day = 24 * 60 * 60.0
    timeouts = trioserver.Timeouts(idle=day)
    async with MemoryServer(("memory", 1), Upper, timeouts=timeouts).serving() as server:
        connected = trio.current_time()
        assert await read_to_end(await server.connect()) == b""
        assert trio.current_time() - connected == day
    assert time.monotonic() - began < 1


@pytest.mark.parametrize("copied", [trioserver.BaseServer.evolve, copy.copy, through_pickle])
async def test_memory_server_copies_are_unbound(
    copied: Callable[[MemoryServer], MemoryServer],
) -> None:
    """A copy of a bound server is unbound: nobody connects to the first by way of the second."""
    server = MemoryServer(("memory", 1), Upper)
    async with server:
        twin = copied(server)
        assert not hasattr(twin, "listener")


@pytest.mark.parametrize("backlog", [0, 1, None])
async def test_memory_server_queues_a_client(backlog: int | None) -> None:
    """However small the queue, one client fits, as with the kernel's."""
    server = MemoryServer(("memory", 1), Upper, request_queue_size=backlog)
    async with server:
        server.listener.connect_now()


async def test_client_has_no_timeouts() -> None:
    """A client in memory waits as long as its test does."""
    async with MemoryServer(("memory", 1), Upper).serving() as server:
        client = await server.connect()
        assert (client.idle_timeout, client.write_timeout) == (math.inf, math.inf)
