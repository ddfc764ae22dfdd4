"""Hold idle connections to one peer after another: what one costs, and how they end.

    python tests/bench/idle.py -c 5000 -p trio_serve_tcp trioserver_stream -r 3

Each connection has had one line answered, so that its handler runs. README.md beside this file
says what a peer is.
"""

from __future__ import annotations

import argparse
import json
import resource
import selectors
import socket
import time
from functools import partial
from pathlib import Path

from loads import SCENARIOS
from machine import wait_until_quiet
from measuring import REFERENCE, Options, Peer, Run, Server, in_rounds, installed, serving
from run import spread, trouble

LINE = b"x" * 31 + b"\n"
FIGURES = ("KiB", "opened s", "CPU while idle", "teardown ms")
AT_ONCE = 64
"""Connections that are opened before their answers are waited for."""


def open_idle(address: str, count: int) -> list[socket.socket]:
    """Connections that have had an answer each."""
    host, _, port = address.rpartition(":")
    clients: list[socket.socket] = []
    while len(clients) < count:
        several = [
            socket.create_connection((host, int(port)))
            for _ in range(min(AT_ONCE, count - len(clients)))
        ]
        for client in several:
            client.sendall(LINE)
        for client in several:
            assert client.recv(65536) == LINE.upper()
        clients += several
    return clients


def resident_kib(pid: int) -> float:
    """Memory of a process that is in RAM, in KiB; nothing of the kernel's."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return float(line.split()[1])
    raise RuntimeError("no VmRSS")


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / 100


def until_all_gone(clients: list[socket.socket]) -> None:
    """Wait until the server has closed each of them."""
    with selectors.DefaultSelector() as selector:
        for client in clients:
            selector.register(client, selectors.EVENT_READ)
        left = len(clients)
        while left:
            for key, _ in selector.select():
                selector.unregister(key.fileobj)
                left -= 1


def hold(server: Server, count: int) -> dict[str, float]:
    """Hold ``count`` connections to a server, then have it end; what that took."""
    address = server.wait_ready()
    for client in open_idle(address, AT_ONCE):  # what is only made once
        client.close()
    before = resident_kib(server.pid)
    began = time.monotonic()
    clients = open_idle(address, count)
    opened = time.monotonic() - began
    kib = (resident_kib(server.pid) - before) / count
    busy = cpu_seconds(server.pid)
    time.sleep(1)  # a second of doing nothing is what is measured
    busy = cpu_seconds(server.pid) - busy
    stopped_ms = server.stop(60)
    until_all_gone(clients)
    for client in clients:
        client.close()
    return dict(zip(FIGURES, (kib, opened, busy, stopped_ms), strict=True))


def allow(connections: int) -> None:
    """Let this process, and what it starts, have so many of them open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 2 * connections + 1000)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))


def measure_idle(peer: Peer, connections: int, options: Options) -> Run:
    """One run against a fresh server."""
    wait_until_quiet(options.patience)
    try:
        with serving(peer, SCENARIOS["pingpong-c50"], options) as server:
            return Run(hold(server, connections))
    except (RuntimeError, OSError, AssertionError) as error:
        return Run({}, failure=str(error) or repr(error))


def compare_idle(peers: list[Peer], connections: int, options: Options) -> dict[str, list[Run]]:
    """The runs of each peer."""
    allow(connections)
    measures = {peer.name: partial(measure_idle, peer, connections, options) for peer in peers}
    return in_rounds(measures, options.rounds)


def main() -> None:
    """Measure, and print a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-c", "--connections", type=int, default=5000)
    parser.add_argument("-p", "--peers", nargs="+", default=[REFERENCE, "trioserver_stream"])
    parser.add_argument("-r", "--rounds", type=int, default=3)
    parser.add_argument("--server-core", default="0")
    parser.add_argument("--client-core", default="1")
    parser.add_argument("-o", "--out", type=Path, help="write all figures to this file as JSON")
    asked = parser.parse_args()
    options = Options(
        rounds=asked.rounds, server_core=asked.server_core, client_core=asked.client_core
    )
    peers, skipped = installed([Peer.parse(spec) for spec in asked.peers])
    found = compare_idle(peers, asked.connections, options)
    print(f"| peer | {' | '.join(FIGURES)} | trouble |\n|---|{'--:|' * len(FIGURES)}---|")
    for name, runs in found.items():
        cells = [
            spread([run.figures[figure] for run in runs if run.figures], ".2f")
            for figure in FIGURES
        ]
        print(f"| {name} | {' | '.join(cells)} | {trouble(runs)} |")
    for note in skipped:
        print(note)
    if asked.out:
        figures = {name: [run.figures for run in runs] for name, runs in found.items()}
        asked.out.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
