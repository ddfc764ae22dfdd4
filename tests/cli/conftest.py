"""Fixtures of the tests of the command line."""

import os
import sys
from contextlib import contextmanager

import pytest
from support.running_programs import running

APP = '''"""Handlers and servers to try commands with."""

import os
import socketserver
import time

import trio
import trioserver


class Upper(trioserver.StreamRequestHandler):
    async def handle(self):
        async for line in self.rfile:
            await self.wfile.write(line.upper())


class Blocking(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())


class Packets(trioserver.DatagramRequestHandler):
    async def handle(self):
        await self.wfile.write(self.packet.upper())


class Blocks(trioserver.StreamRequestHandler):
    def handle(self):
        pass


async def who(request, client_address, server):
    await request.sendall(repr(client_address).encode())


async def stuck(request, client_address, server):
    await request.sendall(b"stuck")
    await trio.sleep_forever()


class Stuck(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(b"stuck")
        self.request.recv(1)


async def fails(request, client_address, server):
    raise ValueError("it broke")


server = trioserver.TCPServer(("127.0.0.1", 0), Upper)
fragile = trioserver.TCPServer(("127.0.0.1", 0), fails, propagate_errors=True)
both = [server, trioserver.UnixStreamServer("both", Upper)]
number = 5


def make():
    return server.evolve(timeouts=trioserver.Timeouts(idle=0.2))


def make_none():
    return None


def forking():
    return socketserver.ForkingTCPServer(("127.0.0.1", 0), Blocking)


def classic():
    port = int(os.environ.get("APP_PORT", 0))
    return socketserver.ThreadingTCPServer(("127.0.0.1", port), Blocking)
'''
BROKEN = "raise KeyError('no such thing')"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """That of the test, with modules of servers, called app and broken; no option is set."""
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "broken.py").write_text(BROKEN)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in os.environ if name.startswith("TRIOSERVER_")]:
        monkeypatch.delenv(name)


@pytest.fixture
def command(tmp_path):
    """Run ``trioserver`` there."""

    @contextmanager
    def run(*arguments, passed=(), **environment):
        words = [word for argument in arguments for word in _words(argument)]
        line = [sys.executable, "-m", "trioserver", *words]
        with running(line, tmp_path, passed, **environment) as program:
            yield program

    return run


def _words(argument):
    return argument.split() if isinstance(argument, str) else argument
