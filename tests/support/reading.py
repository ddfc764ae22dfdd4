"""Handlers that read in every way in which a socket can be read.

In here so that worker processes find them; nothing imports pytest.
"""

import os
import select
import socket
import socketserver
import ssl

import trio

import trioserver

from . import IdlesMixIn, until

PATIENCE = 10
"""Seconds that they wait for a request: more than any client needs."""


class Recv(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(self.request.recv(100))


class File(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(self.rfile.readline())


class Selects(Recv):
    """Does not receive before the kernel says that something is there."""

    def handle(self):
        readable, _, _ = select.select([self.request], [], [], PATIENCE)
        if readable:
            super().handle()


class ByNumber(socketserver.BaseRequestHandler):
    """Reads from the descriptor."""

    def handle(self):
        self.request.sendall(os.read(self.request.fileno(), 100))


class Detaches(socketserver.BaseRequestHandler):
    """Makes a socket of its own of the descriptor."""

    def handle(self):
        with socket.socket(fileno=self.request.detach()) as mine:
            mine.settimeout(PATIENCE)
            mine.sendall(mine.recv(100))


class Wraps(socketserver.BaseRequestHandler):
    """Agrees on TLS by itself, with the certificate that its server names."""

    def handle(self):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.server.certificate)
        with context.wrap_socket(self.request, server_side=True) as tls:
            tls.sendall(tls.recv(100))


class TwoLines(socketserver.StreamRequestHandler):
    """Answers every second line, and reads on only when the client has said something more."""

    rbufsize = 0  # or it would be there already

    def handle(self):
        while line := self.rfile.readline():
            self.rfile.readline()
            self.wfile.write(line.upper())
            select.select([self.request], [], [], PATIENCE)


class AsyncTwoLines(trioserver.StreamRequestHandler):
    """The same, asynchronous."""

    rbufsize = 1

    async def handle(self):
        async for line in self.rfile:
            await self.answer(line)

    async def answer(self, line):
        await self.rfile.readline()
        if line == b"two\n":  # a worker hears of the drain later than the client
            await until(lambda: self.request._receiver.drain.began)
        await self.wfile.write(line.upper())
        await trio.lowlevel.wait_readable(self.request.socket)


class AsyncIdleTwoLines(IdlesMixIn, AsyncTwoLines):
    """The same, with an idle block of its own."""
