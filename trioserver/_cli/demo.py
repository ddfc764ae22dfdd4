"""``python -m trioserver demo``: the life of a server, from bind to drain, four times.

The servers are this library's: over TCP and UDP, and over Unix sockets of both
kinds. Their clients are plain blocking sockets, each of whose calls runs in a thread.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import TypeAlias

import trio

import trioserver

PATIENCE = 5
"""Seconds that a client waits for a reply."""

Address: TypeAlias = "tuple[str, int] | str"


class Upper(trioserver.StreamRequestHandler):
    """Answers each line in upper case; asked to shut down, it does that half-way."""

    async def handle(self) -> None:
        """Answer lines until the client ends, or the server drains."""
        client = f"client {self.info.id}"
        async for line in self.rfile:
            say("server", "receives", f"{line!r} from {client}")
            answer = line.upper()
            if line.startswith(b"shut down"):
                half, answer = answer[:9], answer[9:]
                say("server", "sends", f"{half!r} to {client}, and drains")
                await self.wfile.write(half)
                self.server.shutdown(grace=2)  # never waits, so a request may call it
                await trio.sleep(0.3)
            say("server", "sends", f"{answer!r} to {client}")
            await self.wfile.write(answer)


class UpperDatagram(trioserver.DatagramRequestHandler):
    """Answers a datagram in upper case; asked to shut down, it does that before it answers."""

    async def handle(self) -> None:
        """Answer one datagram; what was written is sent when this returns."""
        client = f"client {self.info.id}"
        say("server", "receives", f"{self.packet!r} from {client}")
        if self.packet.startswith(b"shut down"):
            say("server", "drains", f"while it works for {client}")
            self.server.shutdown(grace=2)
            await trio.sleep(0.3)
        say("server", "sends", f"{self.packet.upper()!r} to {client}")
        await self.wfile.write(self.packet.upper())


class Client:
    """A plain blocking socket that says what it does."""

    def __init__(self, name: str, address: Address, kind: int) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.name = name
        self.address = address
        self.by_datagrams = kind == socket.SOCK_DGRAM
        self.socket = socket.socket(family, kind)
        self.socket.settimeout(PATIENCE)
        self.close = self.socket.close
        if self.by_datagrams:
            if isinstance(address, str):
                self.socket.bind(f"{address}-{name[-1]}")  # without a name of its own, no reply
            self.socket.connect(address)  # tells nobody: it is where `send` sends to

    async def connect(self) -> None:
        """Connect to the server."""
        say(self.name, "connects")
        await trio.to_thread.run_sync(self.socket.connect, self.address)

    async def send(self, data: bytes) -> None:
        """Send a line, or a datagram."""
        say(self.name, "sends", repr(data))
        await trio.to_thread.run_sync(self.socket.sendall, data)

    async def receive(self, expected: bytes) -> None:
        """Receive what comes next, ``b""`` for the end."""
        most = 65_535 if self.by_datagrams else len(expected) or 1
        try:
            received = await trio.to_thread.run_sync(self.socket.recv, most)
        except TimeoutError:
            raise WrongReplyError(f"{self.name} received nothing, not {expected!r}") from None
        say(self.name, "receives", repr(received) if received else "the end")
        if received != expected:
            raise WrongReplyError(f"{self.name} received {received!r}, not {expected!r}")


class WrongReplyError(Exception):
    """A client received something else than it should."""


async def talk_in_lines(address: Address) -> None:
    """One client is idle when the server drains, the other has half of its reply."""
    with (
        closing(Client("client 1", address, socket.SOCK_STREAM)) as idle,
        closing(Client("client 2", address, socket.SOCK_STREAM)) as busy,
    ):
        await idle.connect()
        await idle.send(b"hello, trio\n")
        await idle.receive(b"HELLO, TRIO\n")

        await busy.connect()
        await busy.send(b"shut down, please\n")
        busy.socket.shutdown(socket.SHUT_WR)  # no other request will follow
        await busy.receive(b"SHUT DOWN")

        await idle.receive(b"")
        await busy.receive(b", PLEASE\n")
        await busy.receive(b"")


async def talk_in_datagrams(address: Address) -> None:
    """One client has its reply when the server drains, the other one waits for it."""
    with (
        closing(Client("client 1", address, socket.SOCK_DGRAM)) as done,
        closing(Client("client 2", address, socket.SOCK_DGRAM)) as busy,
    ):
        await done.send(b"hello, trio")
        await done.receive(b"HELLO, TRIO")

        await busy.send(b"shut down, please")
        await busy.receive(b"SHUT DOWN, PLEASE")


async def show(
    server: trioserver.TCPServer | trioserver.UDPServer, talk: Callable[[Address], Awaitable[None]]
) -> None:
    """Serve, talk and shut down, and tell what happens."""
    async with server.serving(grace=2):
        address = server.server_address
        where = address if isinstance(address, str) else "{}:{}".format(*address)
        tell(f"{type(server).__name__} on {where}")
        await talk(address)
        report = await server.wait_closed()
    tell(f"Report: {report}\n")


async def show_all() -> None:
    """Show a server of each kind: over TCP, UDP, and Unix sockets of both kinds."""
    tell("Servers answer in upper case, in lines or in datagrams. Their clients are plain")
    tell("blocking sockets.\n")
    await show(trioserver.TCPServer(("127.0.0.1", 0), Upper), talk_in_lines)
    await show(trioserver.UDPServer(("127.0.0.1", 0), UpperDatagram), talk_in_datagrams)
    if not hasattr(socket, "AF_UNIX"):
        tell("The Unix servers are skipped: this system has no Unix sockets.\n")
        return
    with tempfile.TemporaryDirectory(prefix="trioserver-") as folder:
        lines, datagrams = str(Path(folder, "lines")), str(Path(folder, "datagrams"))
        await show(trioserver.UnixStreamServer(lines, Upper), talk_in_lines)
        await show(trioserver.UnixDatagramServer(datagrams, UpperDatagram), talk_in_datagrams)


def demo() -> int:
    """Show all; the exit status."""
    status, verdict = 0, "Every reply was right, and nothing is left running."
    try:
        trio.run(show_all)
    except* WrongReplyError as wrong:
        status, verdict = 1, f"\nWRONG: {wrong.exceptions[0]}"
    except* KeyboardInterrupt:  # last, for it may have made a reply wrong
        status, verdict = 130, "\nInterrupted."
    tell(verdict)
    return status


def say(who: str, does: str, what: str = "") -> None:
    """A line of the transcript."""
    tell(f"  {who:<10}{does:<10}{what}".rstrip())


def tell(line: str) -> None:
    """Print at once, also into a pipe."""
    print(line, flush=True)
