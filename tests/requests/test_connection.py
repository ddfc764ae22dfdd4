"""The connection: a Trio stream with the classic names, and what a broken one does."""

from __future__ import annotations

import errno
import math
import os
import socket
import struct
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from support import connection_over, plain_client, read_to_end

import trioserver
from trioserver.testing import MemoryTransport, memory_pipe, open_test_server

MEMORY = ("memory", 1)

# Building blocks --------------------------------------------------------------


def pipe(
    capacity: int = 65_536, timeouts: trioserver.Timeouts | None = None
) -> tuple[trioserver.Connection, MemoryTransport]:
    """A connection, and the raw far end."""
    near, far = memory_pipe(capacity)
    return connection_over(near, timeouts=timeouts), far


Pair = tuple[trioserver.Connection, Any]
Connect = Callable[[], Awaitable[Pair]]


@asynccontextmanager
async def both_ends(transport: Any) -> AsyncIterator[Connect]:
    """Serve; gives a function that connects, and returns both ends."""
    accepted, connections = trio.open_memory_channel[trioserver.Connection](0)

    async def hand_out(request: trioserver.Connection, client_address: Any, server: Any) -> None:
        await accepted.send(request)
        await trio.sleep_forever()

    async def connect() -> Pair:
        client = await server.connect()
        return await connections.receive(), client

    # Not strict: who has been handed out goes on until the server ends.
    async with open_test_server(hand_out, transport=transport, strict=False) as server:
        yield connect


async def break_off(stream: Any) -> None:
    """Close so that the other side sees an error, and wait until it would."""
    if isinstance(stream, trioserver.Connection):
        stream.reset()
    else:
        stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.socket.close()
    await trio.testing.wait_all_tasks_blocked()


# A Trio stream ----------------------------------------------------------------


def test_connection_has_the_classic_names() -> None:
    """``recv`` and ``sendall`` are the same methods as Trio's own."""
    assert trioserver.Connection.recv is trioserver.Connection.receive_some
    assert trioserver.Connection.sendall is trioserver.Connection.send_all


async def test_receive_some_gives_at_most_what_was_asked_for(autojump_clock: object) -> None:
    """What is left stays for the next receive."""
    request, far = pipe()
    far.send_now(b"abcdef")
    assert await request.receive_some(4) == b"abcd"
    assert await request.receive_some(4) == b"ef"


async def test_receive_some_without_a_size_is_bounded(autojump_clock: object) -> None:
    """None is as much as is there, but at most 64 KiB."""
    request, far = pipe(capacity=100_000)
    far.send_now(bytes(100_000))
    assert len(await request.receive_some()) == 65_536
    assert len(await request.receive_some(None)) == 100_000 - 65_536


@pytest.mark.parametrize(
    ("size", "kind"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("1", TypeError)]
)
async def test_receive_some_wrong_size(
    size: Any, kind: type[Exception], autojump_clock: object
) -> None:
    """A size that makes no sense is named, and nothing is received."""
    request, far = pipe()
    far.send_now(b"x")
    with pytest.raises(kind, match="max_bytes must be"):
        await request.receive_some(size)
    assert await request.receive_some(1) == b"x"


async def test_receive_some_after_the_end(autojump_clock: object) -> None:
    """CM-07: the end of input is told as often as it is asked for."""
    request, far = pipe()
    far.send_eof()
    for _ in range(3):
        assert await request.receive_some(1) == b""


@pytest.mark.parametrize(
    "data", [b"abcd", bytearray(b"abcd"), memoryview(b"abcd"), array("H", b"abcd"), b""]
)
async def test_send_all_takes_any_buffer(data: Any, autojump_clock: object) -> None:
    """Bytes-like objects of all kinds are sent whole, byte by byte if need be."""
    request, far = pipe(capacity=1)
    received = bytearray()

    async def receive() -> None:
        while True:
            await far.wait_readable()
            received.extend(far.receive_now(10) or b"")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await request.send_all(data)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert bytes(received) == memoryview(data).tobytes()
    assert request.bytes_sent == len(received)


async def test_send_all_of_text(autojump_clock: object) -> None:
    """Text is a mistake of the handler's, and breaks nothing."""
    request, far = pipe()
    with pytest.raises(TypeError):
        await request.send_all("text")
    await request.send_all(b"bytes")
    assert far.receive_now(10) == b"bytes"


@pytest.mark.parametrize("operation", ["receive_some", "send_all", "send_eof"])
async def test_cancelled_operation_has_done_nothing(operation: str, autojump_clock: object) -> None:
    """A checkpoint comes first: what was cancelled has taken and sent nothing."""
    request, far = pipe()
    far.send_now(b"x")
    arguments = [b"y"] if operation == "send_all" else []
    with trio.CancelScope() as scope:
        scope.cancel()
        await getattr(request, operation)(*arguments)
    assert scope.cancelled_caught
    assert far.receive_now(1) is None
    assert await request.receive_some(1) == b"x"


# Time-outs --------------------------------------------------------------------


async def test_idle_timeout_is_exact_and_can_be_survived(autojump_clock: object) -> None:
    """TO-01: a silent peer is told of at the very instant; a handler may go on afterwards."""
    request, far = pipe(timeouts=trioserver.Timeouts(idle=5))
    with pytest.raises(trioserver.IdleTimeout, match=r"5 s \(idle\)") as caught:
        await request.recv(1)
    assert trio.current_time() == 5
    assert isinstance(caught.value, TimeoutError)
    assert caught.value.info is request.info
    far.send_now(b"late")
    assert await request.recv(10) == b"late"


async def test_write_timeout_is_exact_and_final(autojump_clock: object) -> None:
    """CM-10: a peer that takes nothing is told of in time, and nothing is ever sent again."""
    request, _ = pipe(capacity=4, timeouts=trioserver.Timeouts(write=5))
    with pytest.raises(trioserver.WriteTimeout, match=r"5 s \(write\)") as caught:
        await request.sendall(b"too much")
    assert trio.current_time() == 5
    assert isinstance(caught.value, TimeoutError)
    for send in (request.sendall(b"x"), request.send_eof()):
        with pytest.raises(trioserver.WriteTimeout):
            await send
    assert trio.current_time() == 5
    assert request.bytes_sent == 4


async def test_write_timeout_counts_from_the_last_progress(autojump_clock: object) -> None:
    """TO-06: a reader that makes progress is slow, not gone."""
    request, far = pipe(capacity=4, timeouts=trioserver.Timeouts(write=5))

    async def read_slowly() -> None:
        for _ in range(6):
            await trio.sleep(4)
            far.receive_now(1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read_slowly)
        await request.sendall(b"0123456789")
        assert trio.current_time() == 24


async def test_write_timeout_that_meets_room_is_none(autojump_clock: object) -> None:
    """Room that is there at the instant of the time-out counts."""

    class RoomUnnoticed:
        """Room is made while the send waits, and nobody wakes it."""

        def __init__(self, transport: MemoryTransport) -> None:
            self.send_now = transport.send_now

        async def wait_writable(self) -> None:
            far.receive_now(4)
            await trio.sleep_forever()

    near, far = memory_pipe(4)
    request = connection_over(RoomUnnoticed(near), timeouts=trioserver.Timeouts(write=5))
    await request.sendall(b"12345678")
    assert trio.current_time() == 5


@pytest.mark.parametrize(
    ("name", "field"), [("idle_timeout", "Timeouts.idle"), ("write_timeout", "Timeouts.write")]
)
@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (0, ValueError),
        (-1, ValueError),
        (math.nan, ValueError),
        (None, TypeError),
        ("1", TypeError),
    ],
)
async def test_timeout_assigned_wrongly(
    name: str, field: str, value: Any, kind: type[Exception], autojump_clock: object
) -> None:
    """TO-07: a connection's time-outs are validated like the server's, and named."""
    request, _ = pipe()
    before = getattr(request, name)
    with pytest.raises(kind, match=f"{field} must be"):
        setattr(request, name, value)
    assert getattr(request, name) == before


async def test_timeouts_assigned_for_one_connection(autojump_clock: object) -> None:
    """A handler can change the time-outs of its own connection."""
    request, _ = pipe(capacity=1)
    assert (request.idle_timeout, request.write_timeout) == (300, 30)
    request.idle_timeout, request.write_timeout = 2, 3
    with pytest.raises(trioserver.IdleTimeout, match="for 2 s"):
        await request.recv(1)
    with pytest.raises(trioserver.WriteTimeout, match="for 3 s"):
        await request.sendall(b"xx")
    assert trio.current_time() == 2 + 3


async def test_timeouts_can_be_taken_away(autojump_clock: object) -> None:
    """``math.inf`` waits for as long as it takes."""
    request, far = pipe(timeouts=trioserver.Timeouts(idle=1))
    request.idle_timeout = math.inf
    async with trio.open_nursery() as nursery:

        async def take_a_day() -> None:
            await trio.sleep(86_400)
            far.send_now(b"x")

        nursery.start_soon(take_a_day)
        assert await request.recv(1) == b"x"


# The peer goes ----------------------------------------------------------------


async def test_peer_gone_while_sending(autojump_clock: object) -> None:
    """CM-13: a peer that broke off is `PeerGone` to this send and to every later one."""
    request, far = pipe()
    far.reset()
    for send in (request.sendall(b"x"), request.sendall(b"x"), request.send_eof()):
        with pytest.raises(trioserver.PeerGone) as caught:
            await send
        assert isinstance(caught.value, trio.BrokenResourceError)
        assert isinstance(caught.value, ConnectionError)
        assert caught.value.info is request.info


@pytest.mark.parametrize("transport", ["memory", "tcp"])
async def test_peer_gone_before_the_end_of_output(transport: str) -> None:
    """There is nobody left to tell that the output ends."""
    async with both_ends(transport) as connect:
        request, client = await connect()
        await break_off(client)
        for _ in range(2):
            with pytest.raises(trioserver.PeerGone):
                await request.send_eof()


async def test_peer_gone_has_the_kernels_error_as_its_cause(autojump_clock: object) -> None:
    """What the system said is not lost."""
    request, far = pipe()
    far.reset()
    with pytest.raises(trioserver.PeerGone, match=os.strerror(errno.ECONNRESET)) as caught:
        await request.recv(1)
    assert isinstance(caught.value.__cause__, ConnectionResetError)


async def test_peer_gone_wakes_whoever_waits(autojump_clock: object) -> None:
    """A reset ends a waiting receive and a waiting send."""
    request, far = pipe(capacity=1)
    gone = []

    async def expect(operation: Awaitable[object]) -> None:
        with pytest.raises(trioserver.PeerGone):
            await operation
        gone.append(operation)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(expect, request.recv(1))
        nursery.start_soon(expect, request.sendall(b"xx"))
        await trio.testing.wait_all_tasks_blocked()
        far.reset()
    assert len(gone) == 2


@pytest.mark.parametrize("transport", ["memory", "tcp"])
async def test_peer_gone_is_no_end_of_input(transport: str) -> None:
    """A reset that a send was told of does not look like the orderly end of input to a receive."""
    async with both_ends(transport) as connect:
        request, client = await connect()
        await break_off(client)
        with pytest.raises(trioserver.PeerGone):
            await request.sendall(b"x")
        with pytest.raises(trioserver.PeerGone):
            await request.recv(1)


async def test_peer_that_closed_has_ended_its_input() -> None:
    """What a peer sent before it closed is whole, although nothing can be sent to it any more."""
    async with both_ends("unix") as connect:
        request, client = await connect()
        await client.send_all(b"all of it")
        await client.aclose()
        with pytest.raises(trioserver.PeerGone):
            await request.sendall(b"x")
        assert await request.recv(100) == b"all of it"
        assert await request.recv(100) == b""


# A send that was cut short ----------------------------------------------------


async def cut_short(request: trioserver.Connection, data: bytes) -> None:
    """Send, and be cancelled in the wait for room."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(request.sendall, data)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()


async def test_send_cut_short_breaks_later_sends(autojump_clock: object) -> None:
    """After half a message nothing is sent: the peer could not tell where it ends."""
    request, far = pipe(capacity=4)
    await cut_short(request, b"12345678")
    for send in (request.sendall(b"x"), request.send_eof(), request.sendall(b"")):
        with pytest.raises(trio.BrokenResourceError, match="cut short"):
            await send
    assert far.receive_now(100) == b"1234"
    assert far.receive_now(100) is None


async def test_send_cut_short_is_not_the_peers_doing(autojump_clock: object) -> None:
    """The error of a later send is a plain one: the handler went on after a cancellation."""
    request, _ = pipe(capacity=4)
    await cut_short(request, b"12345678")
    with pytest.raises(trio.BrokenResourceError) as caught:
        await request.sendall(b"x")
    assert not isinstance(caught.value, trioserver.RequestEnded)


async def test_send_cut_short_leaves_receiving_alone(autojump_clock: object) -> None:
    """The other direction goes on."""
    request, far = pipe(capacity=4)
    await cut_short(request, b"12345678")
    far.send_now(b"x")
    assert await request.recv(1) == b"x"


async def test_send_that_sent_nothing_breaks_nothing(autojump_clock: object) -> None:
    """A send that was cancelled before a byte went out can be repeated."""
    request, far = pipe(capacity=4)
    await request.sendall(b"full")
    await cut_short(request, b"again")
    assert far.receive_now(100) == b"full"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(request.sendall, b"again")
        await trio.testing.wait_all_tasks_blocked()
        assert far.receive_now(100) == b"agai"
    assert far.receive_now(100) == b"n"


async def test_send_cut_short_resets_over_tcp() -> None:
    """Half a reply ends in a reset, never in an orderly end that makes it look whole."""
    async with both_ends("tcp") as connect:
        request, client = await connect()
        await cut_short(request, bytes(50_000_000))
        await request.aclose()
        with pytest.raises(trio.BrokenResourceError):
            await read_to_end(client)


# Half-closing and closing -----------------------------------------------------


async def test_send_eof_leaves_receiving_alone(autojump_clock: object) -> None:
    """CM-06: the peer reads to the end of our output, and can still send."""
    request, far = pipe()
    await request.sendall(b"bye")
    await request.send_eof()
    assert far.receive_now(10) == b"bye"
    assert far.receive_now(10) == b""
    far.send_now(b"wait")
    assert await request.recv(10) == b"wait"


async def test_send_eof_twice_is_once(autojump_clock: object) -> None:
    """A second `send_eof` is no error; a send after it is."""
    request, _ = pipe()
    await request.send_eof()
    await request.send_eof()
    with pytest.raises(trio.ClosedResourceError, match="its sending half"):
        await request.sendall(b"x")


async def test_aclose_although_cancelled(autojump_clock: object) -> None:
    """Closing closes at once, also under a cancellation, and then raises it."""
    request, far = pipe()
    with trio.CancelScope() as scope:
        scope.cancel()
        await request.aclose()
    assert scope.cancelled_caught
    assert request.state == "closed"
    assert far.receive_now(1) == b""


@pytest.mark.parametrize("close", ["close", "reset"])
async def test_closing_twice_is_once(close: str, autojump_clock: object) -> None:
    """Whoever closes last finds it done."""
    request, far = pipe()
    getattr(request, close)()
    await request.aclose()
    request.close()
    request.reset()
    assert request.state == "closed"
    if close == "close":
        assert far.receive_now(1) == b""  # and not a reset after all


@pytest.mark.parametrize("transport", ["memory", "tcp"])
async def test_closing_wakes_whoever_waits(transport: str) -> None:
    """A task that waits on a connection which another task closes gets `ClosedResourceError`."""
    async with both_ends(transport) as connect:
        request, _ = await connect()
        closed = []

        async def expect(operation: Awaitable[object]) -> None:
            with pytest.raises(trio.ClosedResourceError):
                await operation
            closed.append(operation)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(expect, request.recv(1))
            nursery.start_soon(expect, request.sendall(bytes(50_000_000)))
            await trio.testing.wait_all_tasks_blocked()
            request.close()
        assert len(closed) == 2


# Facts ------------------------------------------------------------------------


async def test_facts_of_a_connection(autojump_clock: object) -> None:
    """The addresses are those of the accept, the configuration is the server's."""
    request, _ = pipe()
    assert request.info.id == 7
    assert request.client_address == ("client", 1)
    assert request.server_address == MEMORY
    assert request.timeouts == trioserver.Timeouts()
    assert request.limits == trioserver.Limits()


async def test_address_outlives_the_connection() -> None:
    """The peer's address is known when the socket is closed and gone."""
    async with both_ends("tcp") as connect:
        request, client = await connect()
        address = client.socket.getsockname()
        await request.aclose()
        assert request.client_address == address


async def test_cancel_scope_has_the_request_deadline(autojump_clock: object) -> None:
    """The request's scope expires ``timeouts.request`` after the accept."""
    await trio.sleep(3)
    request, _ = pipe(timeouts=trioserver.Timeouts(request=60))
    assert request.cancel_scope.deadline == 3 + 60


async def test_bytes_are_counted(autojump_clock: object) -> None:
    """The counters count what the transport gave and took, read by the handler or not."""
    request, far = pipe(capacity=4)
    far.send_now(b"1234")
    assert await request.recv(1) == b"1"
    assert request.bytes_received == 1
    await trioserver.RequestReader(request).peek()
    assert request.bytes_received == 4
    await cut_short(request, b"123456")
    assert request.bytes_sent == 4


async def test_state_follows_what_it_does(autojump_clock: object) -> None:
    """The state says what the connection waits for, and that it is closed."""
    request, far = pipe(capacity=1)
    rfile = trioserver.RequestReader(request)
    states: list[str] = [request.state]

    async def note_while(operation: Awaitable[object]) -> None:
        async def wait() -> None:
            await operation

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.testing.wait_all_tasks_blocked()
            states.append(request.state)
            nursery.cancel_scope.cancel()
        assert request.state == "working"

    await note_while(request.recv(1))  # for the first byte
    far.send_now(b"x")
    await request.recv(1)
    await note_while(request.recv(1))
    await note_while(rfile.more())
    with request.idle():
        states.append(request.state)
    await request.sendall(b"x")
    await note_while(request.sendall(b"x"))
    await note_while(request.wait_send_all_might_not_block())
    request.close()
    states.append(request.state)
    expected = ["working", "idle", "reading", "idle", "idle", "writing", "writing", "closed"]
    assert states == expected


async def test_repr_names_the_request(autojump_clock: object) -> None:
    """The repr says whose connection it is, and what it does."""
    request, _ = pipe()
    assert repr(request) == "<trioserver.Connection: request 7 from client:1, working>"
    request.close()
    assert repr(request) == "<trioserver.Connection: request 7 from client:1, closed>"


async def test_socket_of_a_connection() -> None:
    """The kernel's socket is there for its options."""
    async with both_ends("tcp") as connect:
        request, client = await connect()
        assert request.socket is not None
        assert request.fileno() == request.socket.fileno() > 0
        assert request.socket.getpeername() == client.socket.getsockname()
        await request.aclose()
        assert request.fileno() == -1


async def test_socket_in_memory(autojump_clock: object) -> None:
    """CK-01: a connection in memory has no socket and no descriptor."""
    request, _ = pipe()
    assert request.socket is None
    assert request.fileno() == -1


async def test_peer_credentials_over_unix() -> None:
    """UX-09: a Unix peer's process, user and group are what they are."""
    async with both_ends("unix") as connect:
        request, _ = await connect()
        expected = trioserver.PeerCredentials(os.getpid(), os.getuid(), os.getgid())
        assert request.peer_credentials == expected
        assert request.user_id() == os.getuid()


async def test_peer_credentials_elsewhere() -> None:
    """UX-09: over TCP nobody can tell."""
    async with both_ends("tcp") as connect:
        request, _ = await connect()
        assert request.peer_credentials is None
        assert request.user_id() is None


async def test_blocking_client_is_served() -> None:
    """A client of the standard library, in a thread, talks to the connection."""
    async with both_ends("tcp") as connect:
        request, other = await connect()
        with plain_client(other.socket.getpeername()) as client:
            assert client.getpeername() == request.server_address
