"""What every peer does alike; nothing of it is on the hot path.

A peer is a script ``NAME.py --listen 127.0.0.1:0|unix:/path --service line|bulk|datagram
[--backlog N] [--certificate PEM --key PEM]`` that prints ``READY ADDRESS`` once
it listens. At SIGTERM it closes every connection, prints ``STOPPED <ms>`` and exits.

line: every line is answered with its upper-case form, one write a line, as
      ``for line in self.rfile: self.wfile.write(line.upper())`` does.
bulk: bytes are echoed in chunks of at most 64 KiB.
datagram: each one is answered with its upper-case form.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import time
from dataclasses import dataclass

CHUNK = 65536


@dataclass(frozen=True)
class Task:
    """What the command line asks of a peer."""

    address: tuple[str, int] | str
    """``(host, port)``, or the path of a Unix socket."""
    service: str
    backlog: int
    certificate: str
    key: str

    @property
    def unix(self) -> bool:
        """Whether to listen on a Unix socket."""
        return isinstance(self.address, str)


def task() -> Task:
    """Read the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--listen", default="127.0.0.1:0")
    parser.add_argument("--service", default="line", choices=["line", "bulk", "datagram"])
    parser.add_argument("--backlog", type=int, default=1024)
    parser.add_argument("--certificate", default="", help="of a server by TLS")
    parser.add_argument("--key", default="")
    asked = parser.parse_args()
    host, _, rest = asked.listen.partition(":")
    address = rest if host == "unix" else (host, int(rest))
    return Task(address, asked.service, asked.backlog, asked.certificate, asked.key)


def listener(asked: Task) -> socket.socket:
    """A listening, non-blocking socket."""
    if isinstance(asked.address, str):
        unlink(asked.address)
        sock = socket.socket(socket.AF_UNIX)
    else:
        # asyncio sets TCP_NODELAY on accepted sockets only when the listener's
        # protocol is spelled out.
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(asked.address)
    sock.listen(asked.backlog)
    sock.setblocking(False)
    return sock


def datagram_socket(asked: Task) -> socket.socket:
    """A bound, non-blocking datagram socket, whose buffer holds what the load has on its way."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    sock.bind(asked.address)
    sock.setblocking(False)
    return sock


def unlink(path: str) -> None:
    """Remove what an earlier run left."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)  # noqa: PTH108  (it is a socket's address, a string)


def ready(address: tuple[str, int] | str) -> None:
    """Tell the driver where we listen."""
    shown = f"unix:{address}" if isinstance(address, str) else "{}:{}".format(*address)
    print("READY", shown, flush=True)


class Stopping:
    """The time from SIGTERM to the end."""

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def done(self) -> None:
        """Tell the driver that all is closed."""
        print(f"STOPPED {(time.perf_counter() - self._since) * 1e3:.1f}", flush=True)
