"""Handlers of servers by TLS, in either colour, for workers, too: nothing here imports pytest."""

import json
import os
import select
import signal
import socket
import socketserver
import ssl
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import trioserver


def context_of(folder):
    """The server's context of the files that are there now."""
    return trioserver.server_context(Path(folder) / "cert.pem", Path(folder) / "key.pem")


class Talks(socketserver.StreamRequestHandler):
    """Answers lines, in capitals; some are orders."""

    context = None

    def handle(self):
        for line in self.rfile:
            match line.split():
                case [b"agreed"]:
                    self.wfile.write(json.dumps(self.agreed()).encode() + b"\n")
                case [b"starttls"]:
                    self.wfile.write(b"go on\n")
                    self.request.start_tls(self.server.own_context())
                case [b"send", size]:
                    self.wfile.write(bytes(int(size)))
                case [b"read"]:
                    self.wfile.write(b"%d\n" % len(self.rfile.read()))
                case [b"wait"]:
                    self.request.recv(1)
                case [b"close"]:
                    self.request.close()
                    return
                case [b"fail"]:
                    raise ValueError("on purpose")
                case _:
                    self.wfile.write(line.upper())

    def agreed(self):
        """Version, protocol and certificate, as ``ssl`` tells them."""
        sock = self.request
        certificate = sock.getpeercert() and sock.getpeercert()["subject"]
        return [isinstance(sock, ssl.SSLSocket), sock.version(), certificate]


class AsyncTalks(trioserver.StreamRequestHandler):
    async def handle(self):
        async for line in self.rfile:
            match line.split():
                case [b"agreed"]:
                    await self.wfile.write(json.dumps(self.agreed()).encode() + b"\n")
                case [b"starttls"]:
                    await self.wfile.write(b"go on\n")
                    await self.request.start_tls(self.server.own_context())
                case [b"send", size]:
                    await self.wfile.write(bytes(int(size)))
                case [b"read"]:
                    await self.wfile.write(b"%d\n" % len(await self.rfile.read()))
                case [b"wait"]:
                    await self.request.recv(1)
                case [b"close"]:
                    await self.request.aclose()
                    return
                case [b"fail"]:
                    raise ValueError("on purpose")
                case _:
                    await self.wfile.write(line.upper())

    def agreed(self):
        """The same, as `TLSInfo` tells it."""
        tls = self.request.tls
        return [
            tls is not None,
            tls.version,
            tls.peer_certificate and tls.peer_certificate["subject"],
        ]


class EndsOutput(socketserver.BaseRequestHandler):
    """Ends its output, and goes on sending."""

    def handle(self):
        self.request.sendall(b"said")
        self.request.shutdown(socket.SHUT_WR)
        with suppress(BrokenPipeError):
            self.request.sendall(b"in clear")
            raise AssertionError
        for refused in (self.request.unwrap, self.request.dup):
            with suppress(ValueError, NotImplementedError):
                refused()
                raise AssertionError
        assert self.request.recv(100) == b"heard"


class Hides(socketserver.BaseRequestHandler):
    """Has a file of text, which may hold what nobody sees, when it begins TLS."""

    def handle(self):
        with self.request.makefile("r") as file:
            assert file.readline() == "one\n"
            with suppress(RuntimeError):
                self.request.start_tls(self.server.own_context())
                raise AssertionError
        self.request.sendall(b"refused")


class BothWays(socketserver.BaseRequestHandler):
    """Reads in one thread, and writes in another one."""

    def handle(self):
        reads = threading.Thread(target=self.read)
        reads.start()
        for _ in range(100):
            self.request.sendall(bytes(20_000))
        reads.join()
        self.request.sendall(b"%d" % self.heard)

    def read(self):
        self.heard = 0
        while data := self.request.recv(5000):
            self.heard += len(data)


def own_context(tls):
    """What a handler begins TLS with, as something that pickles."""
    return partial(trioserver.server_context, tls.certificate, tls.key)


def who():
    """Who the client is, and how it is known, as text."""
    info = trioserver.current_request()
    facts = {
        "client": info.client_address,
        "peer": info.peer_address[0],
        "version": info.proxy.version,
        "tls": info.proxy.tls and info.proxy.tls.version,
    }
    return json.dumps(facts).encode()


class Who(socketserver.BaseRequestHandler):
    """Says who its client is."""

    def handle(self):
        self.request.sendall(who())


class AsyncWho(trioserver.BaseRequestHandler):
    async def handle(self):
        await self.request.sendall(who())


def name_in(certificate):
    """The common name of a client's certificate, if it has one."""
    subject = {key: value for ((key, value),) in (certificate or {}).get("subject", ())}
    return subject.get("commonName")


class Facts(socketserver.BaseRequestHandler):
    """Says what was agreed on."""

    def handle(self):
        sock = self.request
        facts = {"version": sock.version(), "alpn": sock.selected_alpn_protocol()}
        facts["who"] = name_in(sock.getpeercert())
        sock.sendall(json.dumps(facts).encode())


class AsyncFacts(trioserver.BaseRequestHandler):
    async def handle(self):
        tls = self.request.tls
        facts = {"version": tls.version, "alpn": tls.alpn, "server_name": tls.server_name}
        facts["who"] = name_in(tls.peer_certificate)
        await self.request.sendall(json.dumps(facts).encode())


PAGE = b"HTTP/1.0 200 OK\r\nContent-Length: 100000\r\n\r\n" + b"x" * 100_000


class Page(socketserver.StreamRequestHandler):
    """One page of HTTP."""

    def handle(self):
        while self.rfile.readline() != b"\r\n":
            pass
        self.wfile.write(PAGE)


class AsyncPage(trioserver.StreamRequestHandler):
    async def handle(self):
        while await self.rfile.readline() != b"\r\n":
            pass
        await self.wfile.write(PAGE)


class AsyncMail(trioserver.StreamRequestHandler):
    """As much of SMTP as it takes to begin TLS."""

    async def handle(self):
        await self.wfile.write(b"220 ready\r\n")
        async for line in self.rfile:
            command = line.strip().upper()
            if command.startswith(b"EHLO"):
                await self.wfile.write(b"250-here\r\n250 STARTTLS\r\n")
            elif command == b"STARTTLS":
                await self.wfile.write(b"220 go ahead\r\n")
                await self.request.start_tls(self.server.own_context())
            elif command == b"QUIT":
                await self.wfile.write(b"221 bye\r\n")
                return
            else:
                by = self.request.tls.version.encode() if self.request.tls else b"nothing"
                await self.wfile.write(b"250 " + command + b" by " + by + b"\r\n")


class Selects(socketserver.BaseRequestHandler):
    """Waits for the descriptor, as proxies do, and reads all that it is told of then."""

    def handle(self):
        sock, heard = self.request, b""
        while heard.count(b"\n") < 3:
            ready, _, _ = select.select([sock], [], [], 5)
            assert ready, f"{heard} has come, and {sock.pending()} bytes are pending"
            heard += sock.recv(4)
            while sock.pending():
                heard += sock.recv(sock.pending())
        sock.sendall(heard)


class SelectsRecords(socketserver.BaseRequestHandler):
    """The same, with one read for each record, whatever is pending."""

    def handle(self):
        sock, heard = self.request, b""
        while heard.count(b"\n") < 3:
            ready, _, _ = select.select([sock], [], [], 5)
            assert ready, f"{heard} has come"
            heard += sock.recv(16_384)
        sock.sendall(heard)


class DoesNotWait(socketserver.BaseRequestHandler):
    """Sees what `ssl` raises where nothing is there, and reads with its defaults."""

    def handle(self):
        sock = self.request
        sock.settimeout(0)
        for kind in (ssl.SSLWantReadError, BlockingIOError):
            with suppress(kind):
                sock.recv()
                raise AssertionError
        sock.sendall(b"go on")
        sock.settimeout(None)
        sock.sendall(sock.recv())


class FillsAndEnds(socketserver.BaseRequestHandler):
    """Fills the network, ends its output, and reads what the client says to that."""

    def handle(self):
        sock = self.request
        sock.settimeout(0)
        with suppress(BlockingIOError):
            while True:
                sock.send(b"x" * 10_000)
        sock.settimeout(10)
        sock.shutdown(socket.SHUT_WR)
        assert sock.recv(100) == b"heard"


class FillsAndCloses(socketserver.BaseRequestHandler):
    """Fills the network, and closes."""

    def handle(self):
        self.request.sendall(b"x" * 300_000)
        self.request.close()


class LeavesThread(socketserver.BaseRequestHandler):
    """Leaves a thread behind, which goes on with the socket."""

    def handle(self):
        sock, over = self.request, threading.Event()

        def go_on():
            over.wait()
            for use in (partial(sock.send, b"late"), partial(sock.recv, 10)):
                with suppress(OSError):
                    use()
                    self.server.told.append("used")
            self.server.told.append("done")

        threading.Thread(target=go_on).start()
        sock.sendall(b"in time")
        self.server.over = over


class ClosesNumber(socketserver.BaseRequestHandler):
    """Closes the descriptor behind everybody's back."""

    def handle(self):
        self.request.recv(10)
        os.close(self.request.fileno())


class Dies(socketserver.BaseRequestHandler):
    """Ends its worker."""

    def handle(self):
        self.request.recv(10)
        os._exit(3)


class AsyncDies(trioserver.BaseRequestHandler):
    async def handle(self):
        await self.request.recv(10)
        os._exit(3)


class DetachesAndCloses(socketserver.BaseRequestHandler):
    """Takes the descriptor over, and closes it."""

    def handle(self):
        self.request.recv(10)
        os.close(self.request.detach())


class DiesByTLS(socketserver.StreamRequestHandler):
    """Begins TLS by itself, and ends its worker."""

    def handle(self):
        self.rfile.readline()
        self.wfile.write(b"go on\n")
        self.request.start_tls(self.server.own_context())
        os._exit(3)


class BuffersBefore(socketserver.StreamRequestHandler):
    """Answers the request for TLS by a buffered file."""

    wbufsize = -1

    def handle(self):
        self.rfile.readline()
        self.wfile.write(b"go on\n")
        self.request.start_tls(self.server.own_context())
        self.wfile.write(b"secret\n")


def narrowed(sock):
    """The socket, which holds little output."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 20_000)
    return sock


NUMBERS = b"".join(b"%08d\n" % number for number in range(300_000))


class SendsWhileItReads(socketserver.BaseRequestHandler):
    """Sends much, and never waits; in between it looks whether there is something to read."""

    def handle(self):
        sock, at = narrowed(self.request), 0
        sock.settimeout(0)
        while at < len(NUMBERS):
            with suppress(BlockingIOError):
                at += sock.send(NUMBERS[at : at + 300_000])
            with suppress(BlockingIOError):
                sock.recv(100)


class SendsBesideAReader(socketserver.BaseRequestHandler):
    """The same with a thread for each."""

    def handle(self):
        reads = threading.Thread(target=self.read)
        reads.start()
        narrowed(self.request).sendall(NUMBERS)
        self.request.shutdown(socket.SHUT_WR)
        reads.join()

    def read(self):
        while self.request.recv(5):
            pass


class LooksAhead(socketserver.BaseRequestHandler):
    """Asks what is pending, and reads on."""

    def handle(self):
        assert self.request.recv(3) == b"one"
        self.request.sendall(b"go on")
        assert self.request.pending() == 0
        self.request.recv(100)


class ShutsBoth(socketserver.BaseRequestHandler):
    """Ends both directions, right after the reply."""

    def handle(self):
        for _ in range(30):
            narrowed(self.request).sendall(b"x" * 10_000)
        self.request.shutdown(socket.SHUT_RDWR)
        self.request.shutdown(socket.SHUT_RDWR)


class GivesUp(socketserver.BaseRequestHandler):
    """Has a time-out of its own, which passes in the middle of a reply."""

    def handle(self):
        sock, portion = self.request, b"x" * 10_000
        sock.settimeout(0)
        with suppress(BlockingIOError):
            while True:
                sock.send(portion)
        sock.settimeout(0.1)
        with suppress(TimeoutError):
            sock.sendall(portion)
            raise AssertionError


class GivesUpAndCloses(GivesUp):
    """The same, and closes."""

    def handle(self):
        super().handle()
        time.sleep(0.5)  # meanwhile the client takes what has come
        self.request.close()


class TriesAgain(socketserver.BaseRequestHandler):
    """Has a time-out of its own, after which it tries again."""

    def handle(self):
        sock, left = narrowed(self.request), memoryview(b"x" * 300_000)
        sock.settimeout(0.05)
        while left:
            with suppress(TimeoutError):
                left = left[sock.send(left) :]


class WakesReader(socketserver.BaseRequestHandler):
    """Wakes its other thread, which waits, when all is said."""

    def handle(self):
        self.ended = []
        reads = threading.Thread(target=self.read)
        self.request.sendall(b"x" * 200_000)
        reads.start()
        while not self.ended:
            time.sleep(0.01)
        self.request.shutdown(socket.SHUT_RDWR)
        reads.join()
        assert self.ended == [b"go on", b""]

    def read(self):
        while not self.ended or self.ended[-1]:
            self.ended.append(self.request.recv(5))


class FillsAndClosesAtOnce(socketserver.BaseRequestHandler):
    """Never waits, and closes when the network is full."""

    def handle(self):
        sock = narrowed(self.request)
        sock.settimeout(0)
        with suppress(BlockingIOError):
            while True:
                sock.send(b"x" * 10_000)
        sock.close()


class ReadsSlowly(socketserver.BaseRequestHandler):
    """Waits for a record that comes in pieces."""

    def handle(self):
        self.request.sendall(b"%d" % len(self.request.recv(100_000)))


class Alarmed(socketserver.BaseRequestHandler):
    """Uses its socket while signals come, whose handler raises."""

    def handle(self):
        self.is_armed = False
        before = signal.signal(signal.SIGALRM, self.alarm)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        until = time.monotonic() + 0.5
        while time.monotonic() < until:
            with suppress(InterruptedError):
                self.use(until)
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        self.request.sendall(b"still here")

    def alarm(self, *_):
        if self.is_armed:
            self.is_armed = False
            raise InterruptedError

    def use(self, until):
        self.is_armed = True
        while time.monotonic() < until:
            self.request.pending()
        self.is_armed = False


class RefusedThenPlain(socketserver.StreamRequestHandler):
    """Makes a mistake, and answers in clear; a file that it has detached is in nobody's way."""

    def handle(self):
        self.request.makefile("w").detach()
        with suppress(TypeError):
            self.request.start_tls(None)
            raise AssertionError
        self.wfile.write(bytes(1_000_000))


class TriesOnce(socketserver.BaseRequestHandler):
    """Reads when it is told that there is something, and only then."""

    def handle(self):
        sock = self.request
        sock.settimeout(0)
        select.select([sock], [], [])
        sock.sendall(sock.recv(100))
