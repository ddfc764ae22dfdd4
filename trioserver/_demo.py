"""``python -m trioserver demo``: the life of a server, from bind to drain, twice.

The servers are this library's, over TCP and over a Unix socket. Their clients
are plain blocking sockets, each of whose calls runs in a thread.
"""

from __future__ import annotations

import socket
import tempfile
from contextlib import closing
from pathlib import Path

import trio

import trioserver


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


class Client:
    """A plain blocking socket that says what it does."""

    def __init__(self, name: str, address: tuple[str, int] | str) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.name = name
        self.address = address
        self.socket = socket.socket(family, socket.SOCK_STREAM)
        self.socket.settimeout(5)
        self.close = self.socket.close

    async def connect(self) -> None:
        """Connect to the server."""
        say(self.name, "connects")
        await trio.to_thread.run_sync(self.socket.connect, self.address)

    async def send(self, line: bytes) -> None:
        """Send a line."""
        say(self.name, "sends", repr(line))
        await trio.to_thread.run_sync(self.socket.sendall, line)

    async def receive(self, expected: bytes) -> None:
        """Receive what comes next, ``b""`` for the end."""
        received = await trio.to_thread.run_sync(self.socket.recv, len(expected) or 1)
        say(self.name, "receives", repr(received) if received else "the end")
        if received != expected:
            raise WrongReplyError(f"{self.name} received {received!r}, not {expected!r}")


class WrongReplyError(Exception):
    """A client received something else than it should."""


async def show(server: trioserver.TCPServer) -> None:
    """One server's life: one client is idle when it drains, the other has half of its reply."""
    async with server.serving(grace=2):
        address = server.server_address
        where = address if isinstance(address, str) else "{}:{}".format(*address)
        tell(f"{type(server).__name__} on {where}")

        with (
            closing(Client("client 1", address)) as idle,
            closing(Client("client 2", address)) as busy,
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
        report = await server.wait_closed()
    tell(f"Report: {report}")


async def show_all() -> None:
    """The same over TCP and over a Unix socket."""
    tell("A server answers each line in upper case. Its clients are plain blocking sockets.\n")
    await show(trioserver.TCPServer(("127.0.0.1", 0), Upper))
    tell("")
    if hasattr(socket, "AF_UNIX"):
        with tempfile.TemporaryDirectory(prefix="trioserver-") as folder:
            await show(trioserver.UnixStreamServer(str(Path(folder, "upper")), Upper))
    else:
        tell("UnixStreamServer is skipped: this system has no Unix sockets.")


def demo() -> int:
    """Show all; the exit status."""
    status, verdict = 0, "Every reply was right, and nothing is left running."
    try:
        trio.run(show_all)
    except* WrongReplyError as wrong:
        status, verdict = 1, f"WRONG: {wrong.exceptions[0]}"
    except* KeyboardInterrupt:  # last, for it may have made a reply wrong
        status, verdict = 130, "Interrupted."
    tell(f"\n{verdict}")
    return status


def say(who: str, does: str, what: str = "") -> None:
    """A line of the transcript."""
    tell(f"  {who:<10}{does:<10}{what}".rstrip())


def tell(line: str) -> None:
    """Print at once, also into a pipe."""
    print(line, flush=True)  # noqa: T201  (a demonstration is for people to read)
