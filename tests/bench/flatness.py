"""See whether what a connection and a line cost depends on how many there are, or have been.

    python tests/bench/flatness.py
    python tests/bench/flatness.py -p trioserver_stream -n 10 1000 --lines 200000

Prints the server's processor time for one line of a single connection, over many of them; then
for one more connection, and for one line, while so many connections are idle. README.md beside
this file says what a peer is.
"""

from __future__ import annotations

import argparse
import dataclasses
import socket

from idle import LINE, allow, cpu_seconds, open_idle
from loads import SCENARIOS
from measuring import (
    REFERENCE,
    Options,
    Peer,
    Server,
    generate_load,
    installed,
    prepare,
    serving,
)

BURST = 100
"""Lines that are sent together, and awaited together."""
PORTIONS = 10
"""Parts into which the lines of one connection are divided."""


def cost_of_lines(server: Server, address: str, lines: int) -> list[float]:
    """Microseconds of the server for one line, in each portion of a connection's lines."""
    host, _, port = address.rpartition(":")
    asked, answer = LINE * BURST, (LINE * BURST).upper()
    costs = []
    with socket.create_connection((host, int(port))) as client:
        for _ in range(PORTIONS):
            before = cpu_seconds(server.pid)
            for _ in range(lines // PORTIONS // BURST):
                client.sendall(asked)
                heard = b""
                while len(heard) < len(answer):
                    heard += client.recv(65536)
                assert heard == answer
            costs.append((cpu_seconds(server.pid) - before) / (lines // PORTIONS) * 1e6)
    return costs


def cost_of(load: str, server: Server, address: str, options: Options) -> float:
    """Microseconds of the server for one operation of a load."""
    return generate_load(address, server.pid, SCENARIOS[load], options)["server_us_per_op"]


def look_at(peer: Peer, sizes: list[int], lines: int, options: Options) -> None:
    """Measure one peer, and print its tables."""
    with serving(peer, SCENARIOS["connect-c32"], options) as server:
        address, held = server.wait_ready(), []
        cost_of("connect-c32", server, address, options)  # what is only made once
        costs = [f"{cost:.2f}" for cost in cost_of_lines(server, address, lines)]
        print(f"\n{peer.name}\n\nus a line, in tenths of {lines}: {', '.join(costs)}\n")
        print("| idle | us a connection | us a line |\n|--:|--:|--:|", flush=True)
        for size in sizes:
            held += open_idle(address, size - len(held))
            loads = ("connect-c32", "pingpong-c50")
            costs = [f"{cost_of(load, server, address, options):.1f}" for load in loads]
            print(f"| {size} | {' | '.join(costs)} |", flush=True)
        for client in held:
            client.close()


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-p", "--peers", nargs="+", default=[REFERENCE, "trioserver_stream"])
    sizes = [10, 100, 1000, 10_000]
    parser.add_argument("-n", "--idle", type=int, nargs="+", default=sizes, metavar="CONNECTIONS")
    parser.add_argument("--lines", type=int, default=1_000_000)
    parser.add_argument("-t", "--seconds", type=float, default=2)
    asked = parser.parse_args()
    if asked.lines < PORTIONS * BURST:
        parser.error(f"--lines must be at least {PORTIONS * BURST}, not {asked.lines}")
    prepare()
    allow(max(asked.idle))
    options = dataclasses.replace(Options(), seconds=asked.seconds)
    peers, skipped = installed([Peer.parse(spec) for spec in asked.peers])
    for peer in peers:
        look_at(peer, sorted(asked.idle), asked.lines, options)
    for note in skipped:
        print(note)


if __name__ == "__main__":
    main()
