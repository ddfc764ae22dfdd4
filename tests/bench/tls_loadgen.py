"""Load by TLS: the modes ``pingpong`` and ``connect`` of loadgen.c, over `ssl.SSLObject`.

In Python, so it takes about as long as a server does. So the figure to compare is what an
operation takes of the *server's* processor (``ops_cpu_s``), whoever of both is the slower one.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import socket
import ssl
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")


def processor_time(pid: int) -> float:
    """Seconds of processor that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


class Client:
    """One connection, which says a line, waits for the answer, and so on."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self.begin()

    def begin(self) -> None:
        """Connect, and agree on TLS."""
        self.socket = socket.create_connection(self._load.address)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = self._load.context.wrap_bio(
            self._incoming, self._outgoing, server_hostname="localhost"
        )
        self._agreed, self._got = False, 0
        self._load.poll.register(self.socket, select.EPOLLIN)
        self._load.clients[self.socket.fileno()] = self
        self.go_on()

    def go_on(self) -> None:
        """Do what can be done now."""
        if not self._agreed:
            try:
                self._tls.do_handshake()
                self._agreed = True
                self._tls.write(self._load.line)
            except ssl.SSLWantReadError:
                pass
        if self._outgoing.pending:
            self.socket.sendall(self._outgoing.read())

    def hear(self) -> None:
        """Take in what has come."""
        data = self.socket.recv(65_536)
        if not data:
            self._load.eofs += 1
            self.end()
            return
        self._incoming.write(data)
        if not self._agreed:
            self.go_on()
            return
        try:
            self._got += len(self._tls.read(65_536))
        except ssl.SSLWantReadError:
            return
        if self._got == len(self._load.line):
            self._load.ops += 1
            self._got = 0
            if self._load.mode == "connect":
                self.end()
                self.begin()
            else:
                self._tls.write(self._load.line)
                self.socket.sendall(self._outgoing.read())

    def end(self) -> None:
        """Close, in order."""
        with contextlib.suppress(ssl.SSLError):
            self._tls.unwrap()
        self.socket.sendall(self._outgoing.read())
        del self._load.clients[self.socket.fileno()]
        self.socket.close()


class Load:
    """All clients, and what they have counted."""

    def __init__(self) -> None:
        parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
        parser.add_argument("mode", choices=["pingpong", "connect"])
        parser.add_argument("--addr", required=True)
        parser.add_argument("--pid", type=int, required=True)
        parser.add_argument("--ca", required=True)
        parser.add_argument("-c", type=int, default=50)
        parser.add_argument("-n", type=int, default=32)
        parser.add_argument("-t", type=float, default=2)
        parser.add_argument("-u", type=float, default=0.5)
        asked = parser.parse_args()
        host, _, port = asked.addr.rpartition(":")
        self.mode, self.address, self._asked = asked.mode, (host, int(port)), asked
        self.context = ssl.create_default_context(cafile=asked.ca)
        self.line = b"x" * (asked.n - 1) + b"\n"
        self.poll = select.epoll()
        self.clients: dict[int, Client] = {}
        self.ops = self.eofs = 0

    def run(self) -> dict[str, float]:
        """Warm up, and measure."""
        for _ in range(self._asked.c):
            Client(self)
        self._go_on_for(self._asked.u)
        self.ops = 0
        began, server, own = time.monotonic(), processor_time(self._asked.pid), time.process_time()
        self._go_on_for(self._asked.t)
        took = time.monotonic() - began
        server, own = processor_time(self._asked.pid) - server, time.process_time() - own
        return {
            "ops_s": self.ops / took,
            "ops_cpu_s": self.ops / server,
            "server_us_per_op": server / self.ops * 1e6,
            "server_cpu": server / took,
            "client_cpu": own / took,
            "eofs": self.eofs,
            **dict.fromkeys(("p50_us", "p99_us", "p999_us", "max_us"), 0.0),
        }

    def _go_on_for(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            for number, _ in self.poll.poll(0.1):
                self.clients[number].hear()


if __name__ == "__main__":
    print(json.dumps(Load().run()))
