"""Hold many idle connections: what one costs, how the next is served, how they drain.

    python tests/soak/idle.py                        # 10 000 that have asked once
    python tests/soak/idle.py --silent               # ... that have never said a byte
    python tests/soak/idle.py --kind unix

An idle connection costs less than 8 KiB of the server's process, the next
client has its answer within 50 ms (apart from the time that server or client
wait for a processor that other programs have), each of the idle ones is still
served, and a drain ends all of them in order within its grace.

It needs a limit of descriptors above the count (``ulimit -Hn``).
"""

from __future__ import annotations

import argparse
import gc
import time
from contextlib import AsyncExitStack

import trio
from _common import (
    STREAM_KINDS,
    Clients,
    Latencies,
    Tally,
    Upper,
    Verdict,
    arguments,
    descriptors,
    in_ms,
    make_server,
    resident_kib,
    run,
    table,
    until,
)

import trioserver

PROCESSES, NEXT_ONES = 4, 200
MOST_KIB, MOST_SECONDS = 8.0, 0.05


async def soak(options: argparse.Namespace, folder: str, verdict: Verdict) -> None:
    """Serve and be served."""
    tally = Tally()
    server = make_server(
        options.kind,
        folder,
        Upper,
        limits=trioserver.Limits(requests=options.count + 100),
        observers=[tally],
    )
    each = options.count // PROCESSES
    count = each * PROCESSES
    async with AsyncExitStack() as stack:
        crowds = [await stack.enter_async_context(Clients.start()) for _ in range(PROCESSES)]
        (somebody,) = [await stack.enter_async_context(Clients.start())]
        empty_handed = descriptors()
        async with trio.open_nursery() as nursery:
            await nursery.start(server.serve_forever)
            where = {"kind": options.kind, "address": server.server_address}
            await somebody.do("ask", **where, count=10, pause=0)  # warm-up
            gc.collect()
            before, began = resident_kib(), time.monotonic()
            says = "" if options.silent else "hello\n"
            async with trio.open_nursery() as together:
                for crowd in crowds:
                    together.start_soon(
                        lambda c: c.do("keep", **where, count=each, says=says), crowd
                    )
            await until(lambda: server.statistics().active == count)
            arrival = time.monotonic() - began
            gc.collect()
            cost = (resident_kib() - before) / count
            cpu = time.process_time()
            await trio.sleep(5)
            idling = (time.process_time() - cpu) / 5
            latencies = Latencies(await somebody.do("ask", **where, count=NEXT_ONES, pause=0.01))
            answers = []
            for crowd in crowds:
                answers += await crowd.do("ask_kept", says="hello\n") if not options.silent else []
            for crowd in crowds:
                await crowd.begin("until_ended")
            cpu = time.process_time()
            server.shutdown(options.grace)
            report = await server.wait_closed()
            work = time.process_time() - cpu
            for crowd in crowds:
                await crowd.result()
        left = descriptors()
    table(
        ("idle connections", count),
        ("arrived in", f"{arrival:.1f} s"),
        ("memory of the server's process for each", f"{cost:.2f} KiB (at most {MOST_KIB:g})"),
        ("CPU while they idle", f"{100 * idling:.1f} %"),
        ("the next client: median / 99 % / worst", latencies),
        ("less the waits for a processor", in_ms(latencies.undisturbed)),
        *([("an idle one that asks: the same", in_ms(answers))] if answers else []),
        ("drained in", f"{report.duration:.2f} s, {work:.2f} s of them on a processor"),
        ("outcomes", tally),
    )
    verdict.promise(cost <= MOST_KIB, "an idle connection costs little")
    verdict.promise(latencies.worst < MOST_SECONDS, "the next client is served at once")
    verdict.promise(len(report.drained) == count and report.clean, f"all drain: {report.summary}")
    verdict.promise(left == empty_handed, f"descriptors: {empty_handed} before, {left} after")


def main() -> None:
    """Run it."""
    parser = arguments(__doc__)
    parser.add_argument("count", type=int, nargs="?", default=10_000, help="connections")
    parser.add_argument("--kind", choices=STREAM_KINDS, default="tcp")
    parser.add_argument("--silent", action="store_true", help="they have never said a byte")
    parser.add_argument("--grace", type=float, default=15, help="of the drain, in seconds")
    run(soak, parser.parse_args())


if __name__ == "__main__":
    main()
