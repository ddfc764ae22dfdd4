"""What a handler in a thread gets as its connection: a `socket.socket`, whatever is done to it."""

import array
import contextlib
import errno
import fcntl
import io
import logging
import math
import os
import socket
import socketserver
import threading
import time
from pathlib import Path

import pytest
import trio
from support import connect, descriptors, read_to_end, until
from support.process_handlers import floods_beside_a_reader
from support.scenes import table
from support.threads import (
    Upper,
    ask,
    asked,
    does,
    hooked,
    met,
    on_tcp,
    shows,
    takes,
    tried,
    witnessed,
)

import trioserver
from trioserver import Timeouts
from trioserver._modes.threads.loan import Loan, LoanState
from trioserver._requests.stream_state import StreamState

_recv = does("recv 100; recv 100")
_sendall = does("sends 30_000_000")


def _send(request, client_address, server):
    while True:
        request.send(bytes(100_000))


def _sendfile(request, client_address, server):
    with Path("/dev/zero").open("rb") as zeros:
        request.sendfile(zeros)


class Writes(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(bytes(30_000_000))


class WritesBuffered(Writes):
    wbufsize = -1


IN_TIME = {"timeout": 0.2}


async def timed_out(witness, reason, caplog):
    """The only request ends like that, and soon; that is one line, no error."""
    await until(lambda: witness.records)
    [record] = witness.records
    assert (record.outcome, record.reason) == ("timed_out", reason)
    assert 0.2 <= record.duration < 2
    assert [it for it in caplog.records if it.levelname == "ERROR"] == []


@pytest.mark.parametrize("ends_idle_reads", [True, False])
@pytest.mark.parametrize("says", [b"", b"half a line"])
@pytest.mark.parametrize("handler", [_recv, Upper, hooked(Upper, **IN_TIME)])
async def test_idle_timeout(handler, says, ends_idle_reads, caplog):
    """The peer's silence ends a read, the first or a later one."""
    timeouts, reason = Timeouts(idle=0.2), "no byte from the peer for 0.2 s (idle)"
    if getattr(handler, "timeout", None):
        timeouts, reason = Timeouts(), "the peer was silent for too long: timed out"
    server = on_tcp(handler, timeouts=timeouts, ends_idle_reads=ends_idle_reads)
    async with met(server, says) as (_, witness):
        await timed_out(witness, reason, caplog)


@pytest.mark.parametrize(
    "handler",
    [
        *(_sendall, _send, _sendfile, floods_beside_a_reader),
        *(Writes, WritesBuffered, hooked(Writes, **IN_TIME)),
    ],
)
async def test_write_timeout(handler, caplog):
    """A client that takes nothing is timed out; half a reply does not look like a whole one."""
    timeouts, reason = Timeouts(write=0.2), "the peer took no byte for 0.2 s (write)"
    if getattr(handler, "timeout", None):
        timeouts, reason = Timeouts(), "the peer took nothing for too long: timed out"
    async with met(on_tcp(handler, timeouts=timeouts)) as (client, witness):
        await timed_out(witness, reason, caplog)
        with pytest.raises(trio.BrokenResourceError), trio.fail_after(5):
            await read_to_end(client)


@pytest.mark.slow
@pytest.mark.parametrize("sets", ["", "settimeout 0.3; "])
async def test_slow_reader(sets):
    """``Timeouts.write`` is for a client that takes nothing: a little all the time is progress.

    A time-out of the handler's own is for all of ``sendall``.
    """
    got, began = 0, time.perf_counter()
    handler = does(f"{sets}sends 30_000_000{' -> TimeoutError' if sets else ''}")
    async with met(on_tcp(handler, timeouts=Timeouts(write=0.3))) as (client, witness):
        with contextlib.suppress(trio.BrokenResourceError):
            while data := await client.receive_some(200_000):
                got += len(data)
                await trio.sleep(0.02 if time.perf_counter() - began < 1 else 0)
    assert (got == 30_000_000) == (not sets)
    assert witness.outcomes == ["completed"]


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1e-9, 0.000_000_9, 0.999_999_9, 3e9, 1e30, math.inf])
@pytest.mark.parametrize("ends_idle_reads", [True, False])
async def test_any_length_of_time(seconds, ends_idle_reads):
    """As short or long as a float: it is kept, and harms no request."""
    timeouts = Timeouts(idle=seconds, write=seconds)
    server = on_tcp(_recv, timeouts=timeouts, ends_idle_reads=ends_idle_reads)
    async with met(server) as (client, witness):
        if seconds > 1:
            await shows(server, state="idle")
            await client.send_eof()
        await until(lambda: witness.records)
    assert witness.outcomes == ["timed_out" if seconds < 1 else "completed"]


def _meets_two(sock, client_address, server):
    try:
        sock.recv(1)
    except TimeoutError as first:
        sock.settimeout(0.01)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        raise first  # noqa: TRY201  (not the last one that was met)


FIFTIETH = (0).to_bytes(8, "little") + (20_000).to_bytes(8, "little")


@table(
    ("handler", "end"),
    {
        "who catches a time-out can say good-bye, and has completed": (
            *(does("recv 1 -> TimeoutError; sendall b'bye'"), "completed"),
        ),
        "it stays the peer's doing, whatever was met, and caught, in between": (
            *(_meets_two, "timed_out: no byte from the peer for 0.05 s (idle)"),
        ),
        "a handler may set SO_RCVTIMEO itself": (
            does(f"setsockopt {socket.SOL_SOCKET}, {socket.SO_RCVTIMEO}, {FIFTIETH}; recv 1"),
            "timed_out: no byte from the peer for 0.02 s (idle)",
        ),
        "a write after its own end is its error": (
            *(does("shutdown 1; sendall b'more'"), "failed: BrokenPipeError"),
        ),
    },
)
async def test_whose_doing_it_is(handler, end):
    """A silent client's request ends as the handler has met it."""
    async with met(on_tcp(handler, timeouts=Timeouts(idle=0.05))) as (client, witness):
        await until(lambda: witness.records)
        assert await read_to_end(client) == (b"bye" if end == "completed" else b"")
    [record] = witness.records
    assert f"{record.outcome}: {record.reason}".startswith(end)
    assert record.duration < 2


# Reads and writes of every kind ------------------------------------------------------------


class Around(trioserver.ThreadingTCPServer):
    """Has received the whole request before its handler, and says something around it."""

    async def verify_request(self, request, client_address):
        return len(await trioserver.RequestReader(request).peek(27)) == 27

    async def finish_request(self, request, client_address):
        await request.sendall(b"before ")
        await super().finish_request(request, client_address)
        assert trioserver.RequestReader(request).at_eof()  # which the handler has met
        await request.sendall(b" after")


@pytest.mark.parametrize("kind", [trioserver.ThreadingTCPServer, Around])
async def test_every_way_to_read(kind):
    """They give what they always give, whatever hooks did, and each byte is counted once."""

    def reads(sock, client_address, server):
        buffer = bytearray(4)
        assert sock.recv(0) == b""
        assert sock.recv_into(bytearray()) == 0
        assert sock.recv(2, socket.MSG_PEEK) == sock.recv(2) == b"01"
        assert (sock.recv_into(buffer, 2), bytes(buffer)) == (2, b"23\0\0")
        assert (sock.recv_into(memoryview(buffer)), bytes(buffer)) == (4, b"4567")
        assert sock.recvfrom(1) == (b"8", None)
        assert (sock.recvfrom_into(buffer, 1), bytes(buffer)) == ((1, None), b"9567")
        data, ancillary, flags, _ = sock.recvmsg(3)
        assert (data, ancillary, flags & socket.MSG_TRUNC) == (b"abc", [], 0)
        parts = [bytearray(1), bytearray(2)]
        assert (sock.recvmsg_into(parts)[0], parts) == (3, [b"d", b"ef"])
        words = array.array("H", [0, 0])
        assert (sock.recv_into(words), words.tobytes()) == (4, b"ghij")
        assert sock.recv(4, socket.MSG_WAITALL) == b"klmn"
        assert sock.makefile("r").read() == "op\n"
        assert sock.recv(1) == sock.recv(1, socket.MSG_PEEK) == sock.recvmsg(1)[0] == b""
        sock.sendall(b"read")

    answer = b"before read after" if kind is Around else b"read"
    record = await asked(on_tcp(reads, kind), b"0123456789abcdefghijklmnop\n", answer)
    assert (record.bytes_received, record.bytes_sent) == (27, len(answer))


async def test_every_way_to_write(tmp_path):
    """They send what they always send, and each byte is counted once."""
    file = tmp_path / "file"
    file.write_bytes(bytes(range(256)) * 100)

    def writes(sock, client_address, server):
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

    sent = b"send;;;sendmsg;makefile;" + file.read_bytes() + bytes(range(1, 11)) + b"from memory"
    record = await asked(on_tcp(writes), b"", sent)
    assert record.bytes_sent == len(sent)


def _by_flag(sock):
    return sock.recv(1, socket.MSG_DONTWAIT)


def _by_python(sock):
    sock.setblocking(False)
    return sock.recv(1)


def _behind_pythons_back(sock):
    flags = fcntl.fcntl(sock, fcntl.F_GETFL)
    fcntl.fcntl(sock, fcntl.F_SETFL, flags | os.O_NONBLOCK)
    return sock.recv(1)


@pytest.mark.parametrize("read", [_by_flag, _by_python, _behind_pythons_back])
async def test_reads_that_do_not_wait(read):
    """They raise what they always raise, at once, as writes do, and get what is there."""

    def looks(sock, client_address, server):
        with pytest.raises(BlockingIOError):
            read(sock)
        flags = socket.MSG_DONTWAIT if read is _by_flag else 0
        with contextlib.suppress(BlockingIOError):
            while sock.send(bytes(100_000), flags):
                pass
        with pytest.raises(BlockingIOError):
            while True:
                sock.sendmsg([bytes(100_000)], (), socket.MSG_DONTWAIT)
        sock.setblocking(True)
        assert sock.recv(1, socket.MSG_PEEK) == b"x"
        assert read(sock) == b"x"
        sock.setblocking(True)
        sock.sendall(b"done")

    async with met(on_tcp(looks)) as (client, _):
        assert (await client.receive_some(1)) == b"\0"
        await client.send_all(b"x")
        assert (await read_to_end(client)).endswith(b"\0done")


async def test_descriptors_can_be_passed():
    """Over a Unix socket, with ``recvmsg``."""

    def writes_there(sock, client_address, server):
        _, [number], _, _ = socket.recv_fds(sock, 10, 1)
        os.write(number, b"written")
        os.close(number)

    name = b"\0trioserver-fds-%d" % os.getpid()
    reader, writer = os.pipe()
    async with met(trioserver.ThreadingUnixStreamServer(name, writes_there)) as (client, _):
        socket.send_fds(client.socket._sock, [b"x"], [writer])
        assert await read_to_end(client) == b""
    os.close(writer)
    assert os.read(reader, 10) == b"written"
    os.close(reader)


async def test_one_thread_reads_and_another_writes():
    """A handler may start a thread of its own for one direction."""

    def both(sock, client_address, server):
        writer = threading.Thread(target=sock.sendall, args=[bytes(3_000_000)])
        writer.start()
        while sock.recv(1_000_000):
            pass
        writer.join()

    async with witnessed(server := on_tcp(both)) as witness:
        async with await connect(server) as client, trio.open_nursery() as nursery:
            nursery.start_soon(client.send_all, bytes(3_000_000))
            got = 0
            while got < 3_000_000:
                got += len(await client.receive_some())
    assert [(it.bytes_received, it.bytes_sent) for it in witness.records] == [(3_000_000,) * 2]


# Life and death of the object ----------------------------------------------------------------


async def test_duplicate_is_a_plain_socket():
    """It has the same time-out, and the handler closes it."""

    def duplicates(sock, client_address, server):
        for seconds in (None, 3):
            sock.settimeout(seconds)
            with sock.dup() as twin:
                assert (type(twin), twin.gettimeout()) == (socket.socket, seconds)
                twin.sendall(twin.recv(1))

    before = descriptors()
    assert (await asked(on_tcp(duplicates), b"hi", b"hi")).outcome == "completed"
    assert descriptors() == before


async def test_files_keep_a_closed_socket_open():
    """As ever: the connection ends when the last file that was made of it is closed."""

    def closes(sock, client_address, server):
        file = sock.makefile("rwb", buffering=0)
        sock.close()
        file.write(file.readline())
        file.close()
        assert sock.fileno() == -1
        with pytest.raises(OSError, match="Bad file descriptor"):
            sock.recv(1)
        go.wait(10)

    go = threading.Event()
    async with met(on_tcp(closes), b"x\n") as (client, _):
        with trio.fail_after(5):
            assert await read_to_end(client) == b"x\n"  # and not when the handler returns
        go.set()


TIMEOUTS = [None, 0, 5, 0.5, True, 9e9, -1, math.inf, -math.inf, math.nan, 1e10, 2**70, "5", []]


async def test_timeout_is_taken_or_refused_as_by_a_socket():
    """``settimeout`` takes what that of a plain socket takes, and raises what that raises.

    Before that, what `socket.setdefaulttimeout` says holds for the handler's socket.
    """

    def timeouts(sock, value):
        sock.settimeout(value)
        return sock.gettimeout(), sock.getblocking()

    def compares(sock, client_address, server):
        assert sock.gettimeout() == 7.0
        plain = socket.socket()
        for _ in ("open", "closed"):
            for value in TIMEOUTS:
                assert tried(timeouts, sock, value) == tried(timeouts, plain, value), value
            sock.close()
            plain.close()
        for flag in (True, False):
            with pytest.raises(OSError, match="Bad file descriptor"):
                sock.setblocking(flag)

    socket.setdefaulttimeout(7)
    try:
        assert (await asked(on_tcp(compares))).outcome == "completed"
    finally:
        socket.setdefaulttimeout(None)


async def test_detached_descriptor_outlives_its_request():
    """It may have been handed to somebody who goes on with the connection."""
    handed = []
    server = on_tcp(lambda sock, *_: handed.append(sock.detach()))
    async with met(server) as (client, witness):
        await until(lambda: witness.records)
        await until(lambda: not server.statistics().lingering)
        os.write(handed[0], b"later")
        os.close(handed[0])
        assert await read_to_end(client) == b"later"
    assert witness.outcomes == ["completed"]


async def test_other_ways_to_the_descriptor_know_no_timeout():
    """``timeouts.idle`` is for the handler's socket: who has the number waits as ever."""

    def reads(sock, client_address, server):
        sock.sendall(b"x")
        sock.sendall(os.read(sock.fileno(), 10))

    async with met(on_tcp(reads, timeouts=Timeouts(idle=0.05))) as (client, _):
        assert await client.receive_some(1) == b"x"
        await trio.sleep(0.2)  # longer than the time-out
        await client.send_all(b"late")
        assert await read_to_end(client) == b"late"


@pytest.mark.parametrize("ends", ["close", "shutdown 1"])
async def test_reply_survives_a_write_after_its_end(ends):
    """A handler that has ended its output, and then writes, has harmed nobody."""
    writes_on = does(f"sends 300_000; {ends}; sendall b'more' -> OSError")
    async with met(on_tcp(writes_on), b"which nobody reads") as (client, witness):
        await trio.sleep(0.1)  # a slow reader
        assert len(await read_to_end(client)) == 300_000
    assert witness.outcomes == ["completed"]


async def test_handlers_linger_holds_up_nobody():
    """``SO_LINGER`` would have Trio's own close wait, and everybody with it."""

    def lingers(sock, client_address, server):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, array.array("i", [1, 5]).tobytes())
        sock.settimeout(0)
        with contextlib.suppress(BlockingIOError):
            while True:
                sock.send(bytes(100_000))

    server = on_tcp(lingers, timeouts=Timeouts(linger=0.1))
    async with met(server) as (_, witness):  # who reads nothing
        with takes(2):
            await until(lambda: witness.records)
            await until(lambda: not server.statistics().lingering)


def none_left(*arguments):
    """There is no descriptor left."""
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


async def test_no_descriptor_left_for_a_handler(monkeypatch, caplog):
    """For one that wants its own: its request fails, and nothing else."""
    before = descriptors()
    async with witnessed(server := on_tcp(lambda sock, *_: os.close(sock.detach()))) as witness:
        with monkeypatch.context() as patch:
            patch.setattr(socket, "dup", none_left)
            assert await ask(server) == b""
        assert await ask(server) == b""
    assert witness.outcomes == ["failed", "completed"]
    assert "Too many open files" in caplog.text
    assert descriptors() == before


async def test_no_descriptor_left_for_the_wake_up_pipe(monkeypatch):
    """Then a drain can wake nobody, and leaves waits to the grace; all else goes on."""
    async with witnessed(server := on_tcp(Upper)) as witness:
        monkeypatch.setattr(socket, "socketpair", none_left)
        async with await connect(server) as client:
            await client.send_all(b"x\n")
            await shows(server, state="idle", bytes_sent=2)
            server.shutdown(0.05)
            assert await read_to_end(client) == b"X\n"
    assert witness.outcomes == ["cancelled"]


@pytest.mark.parametrize("outcome", ["completed", "cancelled"])
async def test_handler_wraps_its_socket_in_tls(outcome, context, trusting, caplog):
    """It may; cancelled, it ends at once as ever, though its socket is another one now."""
    caplog.set_level(logging.INFO, "trioserver.error")

    def upper(sock, client_address, server):
        with context.wrap_socket(sock, server_side=True) as safe:
            while data := safe.recv(100):
                safe.sendall(data.upper())

    before = descriptors()
    async with witnessed(server := on_tcp(upper)) as witness:
        plain = await connect(server)
        stream = trio.SSLStream(plain, trusting, server_hostname="localhost", https_compatible=True)
        await stream.send_all(b"hello")
        assert await stream.receive_some() == b"HELLO"
        with takes(0.5):
            if outcome == "completed":
                await stream.aclose()
            else:
                server.cancel_request(1, "enough")
            await until(lambda: witness.records)
        await trio.aclose_forcefully(stream)
    assert witness.outcomes == [outcome]
    assert [it for it in caplog.records if it.levelname == "ERROR"] == []
    assert descriptors() == before


@pytest.mark.parametrize("ends", ["cancelled", "detached"])
async def test_each_thing_has_one_writer(ends, monkeypatch):
    """The state is the handler's thread's; that it is interrupted, and no more, is Trio's."""
    here, lent = threading.get_ident(), threading.Event()
    writers = {}

    def note(thing, name, value):
        if lent.is_set():
            in_trio = threading.get_ident() == here
            writers.setdefault((type(thing), name), set()).add(in_trio)
        object.__setattr__(thing, name, value)

    def handler(request, client_address, server):
        for kind in (Loan, LoanState, StreamState):
            monkeypatch.setattr(kind, "__setattr__", note)
        lent.set()
        with contextlib.suppress(OSError):
            request.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, bytes(16))
            request.settimeout(60)
            request.makefile("rb").readline()
            request.sendall(b"more")
            request.fileno()
            if ends == "detached":
                socket.close(request.detach())
            request.recv(10)
        lent.clear()

    async with met(server := on_tcp(handler), b"line\n") as (client, witness):
        assert await client.receive_some() == b"more"
        if ends == "cancelled":
            await shows(server, state="idle")
            server.cancel_request(1, "enough")
        await until(lambda: witness.records)
    assert ends == "detached" or writers.pop((Loan, "interrupted")) == {True}
    state = {"timeout", "idle", "reading", "writing", "answered", "held", "shown"}
    written = {(LoanState, name) for name in state}
    written |= {(StreamState, name) for name in ("received", "sent", "may_have_sent")}
    assert written <= set(writers)
    assert {each: who for each, who in writers.items() if who != {False}} == {}
