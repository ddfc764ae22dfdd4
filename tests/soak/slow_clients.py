"""Serve slow clients, many at once, and somebody in a hurry.

    python tests/soak/slow_clients.py         # 500 with a byte every five seconds
    python tests/soak/slow_clients.py --clients 2000 --request 30

Each of them is cut off when ``timeouts.request`` is over, by the name of
``timed_out``; a normal client has its answer within 0.1 s all the time, apart
from the time that server or client wait for a processor that other programs have.
"""

from __future__ import annotations

import argparse
import re
from collections import Counter
from typing import Any

import attrs
from _common import (
    STREAM_KINDS,
    Clients,
    Latencies,
    Upper,
    Verdict,
    arguments,
    in_ms,
    in_words,
    is_quiet,
    make_server,
    run,
    table,
    until,
)

import trioserver

MOST_SECONDS, PAUSE, TOLERANCE = 0.1, 0.02, 2


@attrs.define(eq=False)
class Ledger(trioserver.Observer):
    """Keeps the records of those that were cut off."""

    records: list[trioserver.RequestRecord] = attrs.field(factory=list)

    def request_finished(self, info: Any, outcome: Any, record: Any) -> None:
        if outcome != trioserver.Outcome.COMPLETED:
            self.records.append(record)


async def soak(options: argparse.Namespace, folder: str, verdict: Verdict) -> None:
    """Serve and be served."""
    ledger = Ledger()
    server = make_server(
        options.kind,
        folder,
        Upper,
        timeouts=trioserver.Timeouts(request=options.request),
        limits=trioserver.Limits(requests=options.clients + 10),
        observers=[ledger],
    )
    async with Clients.start() as slow, Clients.start() as normal, server.serving():
        where: dict[str, Any] = {"kind": options.kind, "address": server.server_address}
        alone = Latencies(await normal.do("ask", **where, count=100, pause=PAUSE))
        await normal.begin("ask_until_told", **where, pause=PAUSE)
        lives = await slow.do("trickle", **where, count=options.clients, interval=options.interval)
        await normal.begin("stop")
        latencies = Latencies(await normal.result())
        await until(lambda: is_quiet(server))
    outcomes = Counter(
        f"{record.outcome} ({re.sub('[0-9.]+', 'N', record.reason)})" for record in ledger.records
    )
    durations = [record.duration for record in ledger.records]
    table(
        ("slow clients", f"{options.clients}, a byte every {options.interval:g} s each"),
        ("outcomes", in_words(outcomes)),
        ("cut off after", f"{min(durations):.3f} to {max(durations):.3f} s"),
        ("they saw it after", f"{min(lives):.3f} to {max(lives):.3f} s"),
        ("requests of the normal client", len(latencies.answers)),
        ("its latency: median / 99 % / worst", latencies),
        ("less the waits for a processor", in_ms(latencies.undisturbed)),
        ("the worst of these came after", f"{latencies.worst_at:.2f} s"),
        ("the same without the slow ones", alone),
    )
    cut = [it for it in ledger.records if it.outcome is trioserver.Outcome.TIMED_OUT]
    verdict.promise(len(cut) == len(ledger.records) == options.clients, f"all time out: {outcomes}")
    verdict.promise(all("request" in it.reason for it in cut), f"of one time-out: {outcomes}")
    verdict.promise(
        all(options.request <= it <= options.request + TOLERANCE for it in durations),
        "each is cut off in time",
    )
    verdict.promise(latencies.worst < MOST_SECONDS, "the normal client is served at once")


def main() -> None:
    """Run it."""
    parser = arguments(__doc__)
    parser.add_argument("--clients", type=int, default=500, help="slow ones")
    parser.add_argument("--interval", type=float, default=5, help="seconds between two bytes")
    parser.add_argument("--request", type=float, default=12, help="the time-out, in seconds")
    parser.add_argument("--kind", choices=STREAM_KINDS, default="tcp")
    run(soak, parser.parse_args())


if __name__ == "__main__":
    main()
