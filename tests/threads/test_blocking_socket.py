"""What a handler in a thread gets as its connection: a `socket.socket`, whatever is done to it."""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import io
import logging
import math
import os
import select
import socket
import socketserver
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trustme
from support import Witness, connect, read_to_end, running, until
from support.threads import THERE, ask, on_tcp

import trioserver
from trioserver import Outcome, RequestRecord, Timeouts
from trioserver.testing import open_descriptors

Handler = Callable[[Any, Any, Any], object]


async def record_of(
    handler: Any, *, says: bytes = b"", server: type[Any] | None = None, **fields: Any
) -> RequestRecord:
    """How the request of a client ends who says something, and then waits in silence."""
    witness = Witness()
    make = server or trioserver.ThreadingTCPServer
    async with running(serves := make(THERE, handler, observers=[witness], **fields)):
        async with await connect(serves) as client:
            await client.send_all(says)
            await until(lambda: bool(witness.records))
    [record] = witness.records
    return record


# Time-outs -------------------------------------------------------------------------------


def recv(request: socket.socket, client_address: Any, server: Any) -> None:
    """Receives until the end of input."""
    while request.recv(100):
        pass


class Readline(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        while self.rfile.readline():
            pass


class OwnTimeout(Readline):
    timeout = 0.2


@pytest.mark.parametrize("ends_idle_reads", [True, False])
@pytest.mark.parametrize("says", [b"", b"half a line"])
@pytest.mark.parametrize("handler", [recv, Readline, OwnTimeout])
async def test_idle_timeout(
    handler: Any, says: bytes, ends_idle_reads: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """The peer's silence ends a read, the first or a later one; that is one line, no error."""
    own = handler is OwnTimeout
    timeouts = Timeouts() if own else Timeouts(idle=0.2)
    record = await record_of(handler, says=says, timeouts=timeouts, ends_idle_reads=ends_idle_reads)
    assert record.outcome is Outcome.TIMED_OUT
    expected = "the peer was silent for too long: timed out"
    assert record.reason == (expected if own else "no byte from the peer for 0.2 s (idle)")
    assert 0.2 <= record.duration < 2
    assert [it for it in caplog.records if it.levelname == "ERROR"] == []


def sendall(request: socket.socket, client_address: Any, server: Any) -> None:
    """Sends more than there is room for."""
    request.sendall(bytes(30_000_000))


def send(request: socket.socket, client_address: Any, server: Any) -> None:
    """The same, bit by bit."""
    while True:
        request.send(bytes(100_000))


def sendfile(request: socket.socket, client_address: Any, server: Any) -> None:
    """The same, from a file."""
    with Path("/dev/zero").open("rb") as zeros:
        request.sendfile(zeros)


class Write(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.wfile.write(bytes(30_000_000))


class WriteBuffered(Write):
    wbufsize = -1


class WriteOwnTimeout(Write):
    timeout = 0.2


WRITERS = [sendall, send, sendfile, Write, WriteBuffered, WriteOwnTimeout]


@pytest.mark.parametrize("handler", WRITERS)
async def test_write_timeout(handler: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A client that takes nothing is timed out; half a reply does not look like a whole one."""
    own = handler is WriteOwnTimeout
    witness = Witness()
    timeouts = Timeouts() if own else Timeouts(write=0.2)
    async with running(server := on_tcp(handler, timeouts=timeouts, observers=[witness])):
        async with await connect(server) as client:
            await until(lambda: bool(witness.records))
            with pytest.raises(trio.BrokenResourceError):
                await read_to_end(client)
    [record] = witness.records
    assert record.outcome is Outcome.TIMED_OUT
    expected = "the peer took nothing for too long: timed out"
    assert record.reason == (expected if own else "the peer took no byte for 0.2 s (write)")
    assert [it for it in caplog.records if it.levelname == "ERROR"] == []


async def test_slow_reader_is_not_timed_out() -> None:
    """One that takes a little all the time makes progress."""
    async with running(server := on_tcp(sendall, timeouts=Timeouts(write=0.3))):
        async with await connect(server) as client:
            got, began = 0, time.perf_counter()
            while time.perf_counter() - began < 1:
                got += len(await client.receive_some(200_000))
                await trio.sleep(0.02)
            while data := await client.receive_some():
                got += len(data)
    assert got == 30_000_000


async def test_timeout_that_is_caught() -> None:
    """A handler can say good-bye to a silent client, and has completed then."""

    class SaysGoodbye(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            try:
                self.rfile.readline()
            except TimeoutError:
                self.wfile.write(b"bye")

    witness = Witness()
    timeouts = Timeouts(idle=0.05)
    async with running(server := on_tcp(SaysGoodbye, observers=[witness], timeouts=timeouts)):
        async with await connect(server) as client:
            assert await read_to_end(client) == b"bye"
    assert witness.outcomes == ["completed"]


@pytest.mark.parametrize("seconds", [1e-9, 0.000_000_9, 0.999_999_9, 3e9, 1e30, math.inf])
@pytest.mark.parametrize("ends_idle_reads", [True, False])
async def test_any_length_of_time(seconds: float, ends_idle_reads: bool) -> None:
    """As short or long as a float: it is kept, and harms no request."""
    timeouts = Timeouts(idle=seconds, write=seconds)
    server = on_tcp(recv, timeouts=timeouts, ends_idle_reads=ends_idle_reads)
    witness = Witness()
    server.observers = [witness]
    async with running(server):
        async with await connect(server) as client:
            if seconds < 1:
                await until(lambda: bool(witness.records))
            else:
                await until(lambda: [it.state for it in server.snapshot().requests] == ["idle"])
                await client.send_eof()
                await until(lambda: bool(witness.records))
    assert witness.outcomes == ["timed_out" if seconds < 1 else "completed"]


async def test_reset_that_is_caught_first() -> None:
    """The peer's doing it stays, whatever was met, and caught, in between."""

    class Tries(socketserver.StreamRequestHandler):
        timeout = 0.05

        def handle(self) -> None:
            try:
                self.rfile.readline()
            except TimeoutError as first:
                self.request.settimeout(0.01)
                with pytest.raises(TimeoutError):
                    self.request.recv(1)
                raise first  # noqa: TRY201  (not the last one that was met)

    assert (await record_of(Tries)).outcome is Outcome.TIMED_OUT


# Reads and writes of every kind ------------------------------------------------------------


async def test_every_way_to_read() -> None:
    """They give what they always give, and each byte is counted once."""

    def reads(sock: socket.socket, client_address: Any, server: Any) -> None:
        buffer = bytearray(4)
        assert sock.recv(0) == b""
        assert sock.recv_into(bytearray()) == 0
        assert sock.recv(2, socket.MSG_PEEK) == b"01"
        assert sock.recv(2) == b"01"
        assert (sock.recv_into(buffer, 2), bytes(buffer)) == (2, b"23\0\0")
        assert (sock.recv_into(memoryview(buffer)), bytes(buffer)) == (4, b"4567")
        assert sock.recvfrom(1) == (b"8", None)
        assert sock.recvfrom_into(buffer, 1) == (1, None)
        assert bytes(buffer) == b"9567"
        data, ancillary, flags, _ = sock.recvmsg(3)
        assert (data, ancillary, flags & socket.MSG_TRUNC) == (b"abc", [], 0)
        parts = [bytearray(1), bytearray(2)]
        assert sock.recvmsg_into(parts)[0] == 3
        assert parts == [b"d", b"ef"]
        words = array.array("H", [0, 0])
        assert sock.recv_into(words) == 4
        assert words.tobytes() == b"ghij"
        assert sock.recv(4, socket.MSG_WAITALL) == b"klmn"
        assert sock.makefile("r").read() == "op\n"
        assert sock.recv(1) == sock.recv(1, socket.MSG_PEEK) == b""
        assert sock.recvmsg(1)[0] == b""
        sock.sendall(b"read")

    witness = Witness()
    server = on_tcp(reads, observers=[witness])
    peeked = type("Peeked", (_PeeksFirst,), {})(THERE, reads, observers=[witness])
    for one in (server, peeked):
        async with running(one):
            assert await ask(one, b"0123456789abcdefghijklmnop\n") == b"read"
    assert [record.bytes_received for record in witness.records] == [27, 27]


class _PeeksFirst(trioserver.ThreadingTCPServer):
    """Has received the whole request before the handler gets its socket."""

    async def verify_request(self, request: Any, client_address: Any) -> bool:
        reader = trioserver.RequestReader(request)
        return len(await reader.peek(27)) == 27


async def test_every_way_to_write(tmp_path: Path) -> None:
    """They send what they always send, and each byte is counted once."""
    file = tmp_path / "file"
    file.write_bytes(bytes(range(256)) * 100)

    def writes(sock: socket.socket, client_address: Any, server: Any) -> None:
        assert sock.send(b"send;") == 5
        sock.sendall(array.array("H", [0x3B3B]))
        assert sock.sendmsg([b"send", b"msg;"]) == 8
        with sock.makefile("w") as text:
            text.write("makefile;")
        with file.open("rb") as source:
            assert sock.sendfile(source) == 25_600
            assert sock.sendfile(source, 1, 10) == 10
            assert source.tell() == 11
        assert sock.sendfile(io.BytesIO(b"from memory")) == 11

    expected = (
        b"send;;;sendmsg;makefile;" + file.read_bytes() + bytes(range(1, 11)) + b"from memory"
    )
    witness = Witness()
    async with running(server := on_tcp(writes, observers=[witness])):
        assert await ask(server, b"") == expected
    assert [record.bytes_sent for record in witness.records] == [len(expected)]


def by_flag(sock: socket.socket) -> bytes:
    """A read that does not wait."""
    return sock.recv(1, socket.MSG_DONTWAIT)


def by_python(sock: socket.socket) -> bytes:
    """The same."""
    sock.setblocking(False)
    return sock.recv(1)


def by_fcntl(sock: socket.socket) -> bytes:
    """The same, behind Python's back."""
    flags = fcntl.fcntl(sock, fcntl.F_GETFL)
    fcntl.fcntl(sock, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    return sock.recv(1)


@pytest.mark.parametrize("read", [by_flag, by_python, by_fcntl])
async def test_reads_that_do_not_wait(read: Callable[[socket.socket], bytes]) -> None:
    """They raise what they always raise, at once, and get what is there."""

    def looks(sock: socket.socket, client_address: Any, server: Any) -> None:
        with pytest.raises(BlockingIOError):
            read(sock)
        flags = socket.MSG_DONTWAIT if read is by_flag else 0
        with contextlib.suppress(BlockingIOError):
            while sock.send(bytes(100_000), flags):
                pass
        sock.setblocking(True)
        assert sock.recv(1, socket.MSG_PEEK) == b"x"
        assert read(sock) == b"x"
        sock.setblocking(True)
        sock.sendall(b"done")

    async with running(server := on_tcp(looks)):
        async with await connect(server) as client:
            assert (await client.receive_some(1)) == b"\0"
            await client.send_all(b"x")
            assert (await read_to_end(client)).endswith(b"\0done")


async def test_sockets_own_kernel_timeout() -> None:
    """A handler may set ``SO_RCVTIMEO`` itself."""

    def sets(sock: socket.socket, client_address: Any, server: Any) -> None:
        assert sock.recv(1) == b"x"
        tenth = (0).to_bytes(8, "little") + (100_000).to_bytes(8, "little")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, tenth)
        sock.recv(1)

    record = await record_of(sets, says=b"x")
    assert record.outcome is Outcome.TIMED_OUT
    assert record.duration < 2


async def test_descriptors_can_be_passed() -> None:
    """Over a Unix socket, with ``recvmsg``."""

    def writes_there(sock: socket.socket, client_address: Any, server: Any) -> None:
        _, [number], _, _ = socket.recv_fds(sock, 10, 1)
        os.write(number, b"written")
        os.close(number)

    name = b"\0trioserver-fds-%d" % os.getpid()
    reader, writer = os.pipe()
    async with running(server := trioserver.ThreadingUnixStreamServer(name, writes_there)):
        async with await connect(server) as client:
            socket.send_fds(client.socket._sock, [b"x"], [writer])  # type: ignore[list-item]
            assert await read_to_end(client) == b""
    assert os.read(reader, 10) == b"written"
    os.close(reader)
    os.close(writer)


async def test_one_thread_reads_and_another_writes() -> None:
    """A handler may start a thread of its own for one direction."""

    def both(sock: socket.socket, client_address: Any, server: Any) -> None:
        writer = threading.Thread(target=sock.sendall, args=[bytes(3_000_000)])
        writer.start()
        while sock.recv(1_000_000):
            pass
        writer.join()

    witness = Witness()
    async with running(server := on_tcp(both, observers=[witness])):
        async with await connect(server) as client:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.send_all, bytes(3_000_000))
                got = 0
                while got < 3_000_000:
                    got += len(await client.receive_some())
            await client.send_eof()
    assert [(it.bytes_received, it.bytes_sent) for it in witness.records] == [(3_000_000,) * 2]


async def test_select() -> None:
    """A handler may wait for its socket in ``select``."""

    def selects(sock: socket.socket, client_address: Any, server: Any) -> None:
        while select.select([sock], [], [], 10)[0] and (data := sock.recv(100)):
            sock.sendall(data.upper())

    async with running(server := on_tcp(selects)):
        assert await ask(server, b"hello") == b"HELLO"


# Life and death of the object ----------------------------------------------------------------


async def test_files_keep_a_closed_socket_open() -> None:
    """As ever: the connection ends when the last file that was made of it is closed."""

    def closes(sock: socket.socket, client_address: Any, server: Any) -> None:
        file = sock.makefile("rwb", buffering=0)
        sock.close()
        file.write(file.readline())
        file.close()
        assert sock.fileno() == -1
        with pytest.raises(OSError, match="Bad file descriptor"):
            sock.recv(1)
        go.wait(10)

    go = threading.Event()
    async with running(server := on_tcp(closes)):
        async with await connect(server) as client:
            await client.send_all(b"x\n")
            with trio.fail_after(5):
                assert await read_to_end(client) == b"x\n"  # and not when the handler returns
            go.set()


TIMEOUTS = [None, 0, 5, 0.5, True, 9e9, -1, math.inf, -math.inf, math.nan, 1e10, 2**70, "5", []]


async def test_timeout_is_taken_or_refused_as_by_a_socket() -> None:
    """``settimeout`` takes what that of a plain socket takes, and raises what that raises."""
    seen: list[tuple[Any, Any]] = []

    def tried(sock: socket.socket, value: Any) -> Any:
        try:
            sock.settimeout(value)
        except Exception as error:  # noqa: BLE001  (that is what is compared)
            return type(error), getattr(error, "errno", None)
        return sock.gettimeout(), sock.getblocking()

    def compares(sock: socket.socket, client_address: Any, server: Any) -> None:
        with socket.socket() as plain:
            seen.extend((tried(sock, value), tried(plain, value)) for value in TIMEOUTS)
        sock.close()
        seen.extend((tried(sock, value), tried(plain, value)) for value in TIMEOUTS)
        for flag in (True, False):
            with pytest.raises(OSError, match="Bad file descriptor"):
                sock.setblocking(flag)

    async with running(server := on_tcp(compares)):
        assert await ask(server, b"") == b""
        await until(lambda: not server.requests)
    assert len(seen) == 2 * len(TIMEOUTS)
    for (ours, theirs), value in zip(seen, 2 * TIMEOUTS, strict=True):
        assert ours == theirs, value


async def test_duplicate_is_a_plain_socket() -> None:
    """It can do all, and nobody keeps account of it; the handler has to close it."""

    def copies(sock: socket.socket, client_address: Any, server: Any) -> None:
        with sock.dup() as twin:
            assert type(twin) is socket.socket
            twin.sendall(twin.recv(10))

    before = open_descriptors()
    async with running(server := on_tcp(copies)):
        assert await ask(server, b"hello") == b"hello"
    assert open_descriptors() == before


async def test_duplicate_has_the_same_timeout() -> None:
    """As everywhere."""
    seen: list[float | None] = []

    def copies(sock: socket.socket, client_address: Any, server: Any) -> None:
        for seconds in (None, 3):
            sock.settimeout(seconds)
            with sock.dup() as twin:
                seen.append(twin.gettimeout())
                twin.sendall(twin.recv(1))

    async with running(server := on_tcp(copies)):
        assert await ask(server, b"hi") == b"hi"
    assert seen == [None, 3]


async def test_detached_descriptor_is_the_handlers() -> None:
    """Who takes the number closes it."""

    def takes(sock: socket.socket, client_address: Any, server: Any) -> None:
        number = sock.detach()
        os.write(number, b"hello")
        os.close(number)

    async with running(server := on_tcp(takes)):
        assert await ask(server, b"") == b"hello"


async def test_detached_descriptor_outlives_its_request() -> None:
    """It may have been handed to somebody who goes on with the connection."""
    handed: list[int] = []
    go = threading.Event()

    def hands_over(sock: socket.socket, client_address: Any, server: Any) -> None:
        handed.append(sock.detach())

    def goes_on() -> None:
        assert go.wait(10)
        os.write(handed[0], b"later")
        os.close(handed[0])

    witness = Witness()
    thread = threading.Thread(target=goes_on)
    thread.start()
    async with running(server := on_tcp(hands_over, observers=[witness])):
        async with await connect(server) as client:
            await until(lambda: bool(witness.records))
            await until(lambda: not server.statistics().lingering)
            go.set()
            assert await read_to_end(client) == b"later"
    thread.join()
    assert witness.outcomes == ["completed"]


async def test_other_ways_to_the_descriptor_know_no_timeout() -> None:
    """``timeouts.idle`` is for the handler's socket: who has the number waits as ever."""
    got: list[bytes] = []

    def reads(sock: socket.socket, client_address: Any, server: Any) -> None:
        sock.sendall(b"x")
        got.append(os.read(sock.fileno(), 10))

    async with running(server := on_tcp(reads, timeouts=Timeouts(idle=0.05))):
        async with await connect(server) as client:
            assert await client.receive_some(1) == b"x"
            await trio.sleep(0.2)  # longer than the time-out
            await client.send_all(b"late")
            assert await read_to_end(client) == b""
    assert got == [b"late"]


async def test_default_timeout_of_all_sockets() -> None:
    """``socket.setdefaulttimeout`` is for handlers, too; Trio's thread does not wait for it."""
    seen: list[float | None] = []

    def looks(sock: socket.socket, client_address: Any, server: Any) -> None:
        seen.append(sock.gettimeout())
        sock.sendall(sock.recv(10))

    socket.setdefaulttimeout(7)
    try:
        async with running(server := on_tcp(looks)):
            assert await ask(server, b"hello") == b"hello"
    finally:
        socket.setdefaulttimeout(None)
    assert seen == [7]


def closes(sock: socket.socket) -> None:
    """One way to end the output."""
    sock.close()


def shuts(sock: socket.socket) -> None:
    """Another."""
    sock.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("ends", [closes, shuts])
async def test_reply_survives_a_write_after_its_end(ends: Any) -> None:
    """A handler that has ended its output, and then writes, has harmed nobody."""

    def writes_on(sock: socket.socket, client_address: Any, server: Any) -> None:
        sock.sendall(bytes(300_000))
        ends(sock)
        with pytest.raises(OSError):  # noqa: PT011
            sock.sendall(b"more")

    witness = Witness()
    async with running(server := on_tcp(writes_on, observers=[witness])):
        async with await connect(server) as client:
            await client.send_all(b"which nobody reads")
            await trio.sleep(0.1)  # a slow reader
            assert len(await read_to_end(client)) == 300_000
    assert witness.outcomes == ["completed"]


async def test_own_mistake_is_not_the_peers() -> None:
    """A write after the handler's own end is its error, not a peer that is gone."""

    def writes_on(sock: socket.socket, client_address: Any, server: Any) -> None:
        sock.shutdown(socket.SHUT_WR)
        sock.sendall(b"more")

    record = await record_of(writes_on)
    assert record.outcome is Outcome.FAILED
    assert record.reason.startswith("BrokenPipeError")


async def test_handlers_linger_holds_up_nobody() -> None:
    """``SO_LINGER`` would have Trio's own close wait, and everybody with it."""

    def lingers(sock: socket.socket, client_address: Any, server: Any) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, array.array("i", [1, 5]).tobytes())
        sock.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                sock.send(bytes(100_000))

    witness = Witness()
    timeouts = Timeouts(linger=0.1)
    async with running(server := on_tcp(lingers, observers=[witness], timeouts=timeouts)):
        async with await connect(server):  # which reads nothing
            began = time.perf_counter()
            await until(lambda: bool(witness.records))
            await until(lambda: not server.statistics().lingering)
            assert time.perf_counter() - began < 2


async def test_sendmsg_that_does_not_wait() -> None:
    """With ``MSG_DONTWAIT``, a full socket is no time-out."""
    met: list[type[Exception]] = []

    def sends(sock: socket.socket, client_address: Any, server: Any) -> None:
        try:
            while True:
                sock.sendmsg([bytes(100_000)], (), socket.MSG_DONTWAIT)
        except OSError as error:
            met.append(type(error))

    async with running(server := on_tcp(sends)):
        async with await connect(server) as client:
            await until(lambda: bool(met))
            assert len(await read_to_end(client)) > 100_000
    assert met == [BlockingIOError]


async def test_no_descriptor_left_for_a_handler(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """For one that wants its own: its request fails, and nothing else."""

    def none_left(number: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def detaches(sock: socket.socket, client_address: Any, server: Any) -> None:
        os.close(sock.detach())

    before = open_descriptors()
    async with running(server := on_tcp(detaches)):
        with monkeypatch.context() as patch:
            patch.setattr(socket, "dup", none_left)
            assert await ask(server, b"") == b""
        assert await ask(server, b"") == b""
        outcomes = server.statistics().outcomes
    assert (outcomes[Outcome.FAILED], outcomes[Outcome.COMPLETED]) == (1, 1)
    assert "Too many open files" in caplog.text
    assert open_descriptors() == before


# TLS by the handler itself ---------------------------------------------------------------------


@attrs.frozen
class Tls:
    """Contexts for both ends."""

    server: ssl.SSLContext
    client: ssl.SSLContext


@pytest.fixture(scope="module")
def tls() -> Tls:
    """With an authority of their own."""
    authority = trustme.CA()
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return Tls(server, client)


def upper_over(tls: Tls) -> Handler:
    """A handler that wraps its socket in TLS."""

    def handle(sock: socket.socket, client_address: Any, server: Any) -> None:
        with tls.server.wrap_socket(sock, server_side=True) as safe:
            while data := safe.recv(100):
                safe.sendall(data.upper())

    return handle


async def test_handler_wraps_its_socket_in_tls(tls: Tls) -> None:
    """It works as ever."""
    before = open_descriptors()
    witness = Witness()
    async with running(server := on_tcp(upper_over(tls), observers=[witness])):
        stream = trio.SSLStream(
            await connect(server), tls.client, server_hostname="localhost", https_compatible=True
        )
        async with stream:
            await stream.send_all(b"hello")
            assert await stream.receive_some() == b"HELLO"
        await until(lambda: bool(witness.records))
    assert witness.outcomes == ["completed"]
    assert open_descriptors() == before


async def test_request_with_tls_is_cancelled(tls: Tls, caplog: pytest.LogCaptureFixture) -> None:
    """It ends at once, though its socket is another one now."""
    caplog.set_level(logging.INFO, "trioserver.error")
    witness = Witness()
    async with running(server := on_tcp(upper_over(tls), observers=[witness])):
        stream = trio.SSLStream(
            await connect(server), tls.client, server_hostname="localhost", https_compatible=True
        )
        await stream.send_all(b"hello")
        assert await stream.receive_some() == b"HELLO"
        began = time.perf_counter()
        server.cancel_request(1, "enough")
        await until(lambda: bool(witness.records))
        assert time.perf_counter() - began < 0.5
        await trio.aclose_forcefully(stream)
    assert witness.outcomes == ["cancelled"]
    assert [it for it in caplog.records if it.levelname == "ERROR"] == []
