"""The connection: a Trio stream with the classic names, and what a broken one does."""

import errno
import math
import os
import socket
from array import array
from functools import partial

import pytest
import trio
from support import connection_over, read_to_end
from support.pipes import Dialogue, pipe, waiting
from support.scenes import table

import trioserver
from trioserver._sockets.stream_sockets import SocketTransport
from trioserver.testing import memory_pipe, open_test_server


async def raises(kind, operation):
    """The error that an operation ends with."""
    with pytest.raises(kind) as caught:
        await operation
    return caught.value


FOUR = {"capacity": 4}
narrow = partial(Dialogue, of=FOUR)


@table(
    "dialogue",
    {
        "A size that makes no sense is named, and nothing is received": Dialogue(
            "says b'x'; receive_some 0 -> ValueError 'max_bytes must be'; "
            "receive_some -1 -> ValueError 'max_bytes must be'; "
            "receive_some 1.5 -> TypeError 'max_bytes must be'; "
            "receive_some '1' -> TypeError 'max_bytes must be'; receive_some 1 -> b'x'"
        ),
        "CM-07: the end of input is told as often as it is asked for": Dialogue(
            "says_bye; receive_some 1 -> b''; receive_some 1 -> b''; receive_some 1 -> b''"
        ),
        "Text is a mistake of the handler's, and breaks nothing": Dialogue(
            "send_all 'text' -> TypeError; send_all b'bytes'; hears -> b'bytes'"
        ),
        "A checkpoint comes first: what was cancelled has taken and sent nothing": Dialogue(
            "says b'x'; receive_some -> cancelled; send_all b'y' -> cancelled; "
            "send_eof -> cancelled; hears -> None; receive_some 1 -> b'x'"
        ),
        "TO-01: a silent peer is told of at the very instant; a handler may go on": Dialogue(
            "recv 1 -> IdleTimeout '5 s (idle)'; now -> 5; says b'late'; recv 10 -> b'late'; "
            "recv 1 -> TimeoutError; now -> 10",
            {"idle": 5},
        ),
        "CM-10: a peer that takes nothing is told of in time, and gets nothing more": Dialogue(
            "sendall b'too much' -> WriteTimeout '5 s (write)'; now -> 5; bytes_sent -> 4; "
            "sendall b'x' -> WriteTimeout; send_eof -> WriteTimeout; sendall b'x' -> TimeoutError; "
            "now -> 5; hears -> b'too '; hears -> None",
            {**FOUR, "write": 5},
        ),
        "TO-06: a reader that makes progress is slow, not gone": Dialogue(
            "sendall b'0123456789'; now -> 24",
            {**FOUR, "write": 5},
            dict.fromkeys(range(4, 28, 4), "takes 1"),
        ),
        "CM-13: a peer that broke off is `PeerGone` to this send and to whatever follows": Dialogue(
            "breaks_off; sendall b'x' -> PeerGone; recv 1 -> PeerGone; "
            "sendall b'x' -> ConnectionError; send_eof -> BrokenResourceError"
        ),
        "as it is to who ends its output": Dialogue(
            "breaks_off; send_eof -> PeerGone; send_eof -> PeerGone"
        ),
        "After half a message nothing is sent: the peer could not tell where it ends": narrow(
            "sendall b'12345678' -> waits; sendall b'x' -> BrokenResourceError 'cut short'; "
            "send_eof -> BrokenResourceError 'cut short'; "
            "sendall b'' -> BrokenResourceError 'cut short'; hears -> b'1234'; hears -> None; "
            "says b'x'; recv 1 -> b'x'"
        ),
        "A send that was cancelled before a byte went out can be repeated": Dialogue(
            "sendall b'full'; sendall b'again' -> waits; hears -> b'full'; sendall b'again'; "
            "now -> 1; hears -> b'n'",
            FOUR,
            {1: "hears -> b'agai'"},
        ),
        "CM-06: the peer reads to the end of our output, sent once, and can still send": Dialogue(
            "sendall b'bye'; send_eof; hears -> b'bye'; hears -> b''; says b'wait'; "
            "recv 10 -> b'wait'; send_eof; sendall b'x' -> ClosedResourceError 'its sending half'"
        ),
        "Closing closes at once, also under a cancellation, and then raises it": Dialogue(
            "aclose -> cancelled; state -> 'closed'; hears -> b''"
        ),
        "Whoever closes last finds it done, and it is no reset after all": Dialogue(
            "close; aclose; close; reset; state -> 'closed'; hears -> b''"
        ),
        "Whoever closes after a reset, too": Dialogue(
            "reset; aclose; close; reset; state -> 'closed'; hears -> ConnectionResetError"
        ),
        "The counters count what the transport gave and took, read by the handler or not": narrow(
            "says b'1234'; recv 1 -> b'1'; bytes_received -> 1; peek -> b'234'; "
            "bytes_received -> 4; sendall b'123456' -> waits; bytes_sent -> 4"
        ),
        "CK-01: a connection in memory has no socket, no descriptor, and its addresses": Dialogue(
            "socket -> None; fileno -> -1; client_address -> ('client', 1); "
            "server_address -> ('memory', 1)"
        ),
    },
)
async def test_dialogues(dialogue, autojump_clock):
    """What a connection does in memory."""
    await dialogue.play()


async def test_receive_some_without_a_size_is_bounded(autojump_clock):
    """None is as much as is there, but at most 64 KiB."""
    end = pipe(100_000)
    end.says(bytes(100_000))
    assert [len(await end.request.receive_some(*size)) for size in ([], [None])] == [65_536, 34_464]


@pytest.mark.parametrize(
    "data", [b"abcd", bytearray(b"abcd"), memoryview(b"abcd"), array("H", b"abcd"), b""]
)
async def test_send_all_takes_any_buffer(data, autojump_clock):
    """Bytes-like objects of all kinds are sent whole, byte by byte if need be."""
    end, received = pipe(1), bytearray()

    async def receive():
        while True:
            await end.far.wait_readable()
            received.extend(end.hears() or b"")

    async with waiting(receive()):
        await end.request.send_all(data)
    assert bytes(received) == memoryview(data).tobytes()
    assert end.request.bytes_sent == len(received)


async def test_write_timeout_that_meets_room_is_none(autojump_clock):
    """Room that is there at the instant of the time-out counts."""

    class RoomUnnoticed:
        """Room is made while the send waits, and nobody wakes it."""

        def __init__(self, transport):
            self.send_now = transport.send_now

        async def wait_writable(self):
            far.receive_now(4)
            await trio.sleep_forever()

    near, far = memory_pipe(4)
    request = connection_over(RoomUnnoticed(near), timeouts=trioserver.Timeouts(write=5))
    await request.sendall(b"12345678")
    assert trio.current_time() == 5


@pytest.mark.parametrize("name", ["idle", "write"])
@pytest.mark.parametrize("value", [0, -1, math.nan, None, "1"])
async def test_timeout_assigned_wrongly(name, value, autojump_clock):
    """TO-07: a connection's time-outs are validated like the server's, and named."""
    request = pipe().request
    kind = ValueError if isinstance(value, int | float) else TypeError
    with pytest.raises(kind, match=rf"Timeouts\.{name} must be"):
        setattr(request, f"{name}_timeout", value)
    assert (request.idle_timeout, request.write_timeout) == (300, 30)


async def test_timeouts_assigned_for_one_connection(autojump_clock):
    """A handler can change the time-outs of its own connection, or take them away."""
    end = pipe(1)
    end.request.idle_timeout, end.request.write_timeout = 2, 3
    await end.play("recv 1 -> IdleTimeout 'for 2 s'; sendall b'xx' -> WriteTimeout 'for 3 s'")
    await end.play("now -> 5")
    end.request.idle_timeout = math.inf
    async with waiting(end.request.recv(1)) as received:
        await trio.sleep(86_400)
        end.says(b"x")
    assert received == [b"x"]


async def test_errors_know_their_request(autojump_clock):
    """What the system said is not lost; and a send cut short is not the peer's doing."""
    end, cut_short = pipe(idle=5), pipe(4)
    silent = await raises(trioserver.IdleTimeout, end.request.recv(1))
    end.far.reset()
    gone = await raises(trioserver.PeerGone, end.request.recv(1))
    assert silent.info is gone.info is end.request.info
    assert os.strerror(errno.ECONNRESET) in str(gone)
    assert isinstance(gone.__cause__, ConnectionResetError)
    await cut_short.play("sendall b'12345678' -> waits")
    error = await raises(trio.BrokenResourceError, cut_short.request.sendall(b"x"))
    assert not isinstance(error, trioserver.RequestEnded)


@pytest.mark.parametrize(
    ("end", "kind"), [("breaks_off", trioserver.PeerGone), ("close", trio.ClosedResourceError)]
)
async def test_end_wakes_whoever_waits(end, kind, autojump_clock):
    """A reset, or a task that closes the connection, ends a waiting receive and a waiting send."""
    here = pipe(4)
    async with (
        waiting(raises(kind, here.request.recv(1))) as received,
        waiting(raises(kind, here.request.sendall(b"too much"))) as sent,
    ):
        await here.play(end)
    assert len(received) == len(sent) == 1


async def test_peer_that_closed_has_ended_its_input():
    """What a peer sent before it closed is whole, although nothing can be sent to it any more."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.sendall(b"all of it")
    theirs.close()
    async with connection_over(SocketTransport(ours)) as request:
        await raises(trioserver.PeerGone, request.sendall(b"x"))
        assert await read_to_end(request) == b"all of it"


async def test_socket_of_a_connection():
    """The kernel's socket is there for its options; the peer's address outlives it."""

    async def look(request, client_address, server):
        assert request.socket is not None
        assert request.socket.getpeername() == client_address
        assert request.socket.getsockname() == request.server_address
        files = trioserver.RequestReader(request), trioserver.RequestWriter(request, 0)
        assert {file.fileno() for file in files} == {request.socket.fileno()}
        assert request.fileno() == request.socket.fileno() > 0
        await request.aclose()
        assert [it.fileno() for it in (request, *files)] == [-1] * 3
        assert request.client_address == client_address

    async with open_test_server(look, transport="tcp") as server:
        client = await server.connect()
        assert await client.receive_some() == b""
        [exchange] = await server.wait_requests()
        assert exchange.info.client_address == client.socket.getsockname()


async def test_configuration_is_the_servers(autojump_clock):
    """The request's scope expires ``timeouts.request`` after the accept; names are the classic."""
    await trio.sleep(3)
    request = pipe(request=60).request
    assert (request.info.id, request.cancel_scope.deadline) == (7, 3 + 60)
    assert request.timeouts == trioserver.Timeouts(request=60)
    assert request.limits == trioserver.Limits()
    assert trioserver.Connection.recv is trioserver.Connection.receive_some
    assert trioserver.Connection.sendall is trioserver.Connection.send_all


async def test_state_follows_what_it_does(autojump_clock):
    """State and repr say what the connection waits for, and that it is closed."""
    end = pipe(1)
    request = end.request

    async def is_doing(state, operation):
        async with waiting(operation):
            assert request.state == state
        assert request.state == "working"

    assert repr(request) == "<trioserver.Connection: request 7 from client:1, working>"
    await is_doing("idle", request.recv(1))  # for the first byte
    await end.play("says b'x'; recv 1")
    await is_doing("reading", request.recv(1))
    await is_doing("idle", end.rfile.more())
    with request.idle():
        assert request.state == "idle"
    await request.sendall(b"x")
    await is_doing("writing", request.sendall(b"x"))
    await is_doing("writing", request.wait_send_all_might_not_block())
    request.close()
    assert repr(request) == "<trioserver.Connection: request 7 from client:1, closed>"
    assert request.state == "closed"
