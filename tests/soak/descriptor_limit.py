"""Run into the limit of descriptors for a while, and come back.

    python tests/soak/descriptor_limit.py            # 10 s
    python tests/soak/descriptor_limit.py --seconds 30

While no descriptor is left (a real ``RLIMIT_NOFILE``), the server needs less
than 5 % of a processor, logs two records, one when it begins and one when it
ends, and serves its clients as before. Those that come meanwhile are served or
turned away, none is forgotten. Afterwards everything is as before.
"""

from __future__ import annotations

import argparse
import os
import resource
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import trio
from _common import (
    STREAM_KINDS,
    Clients,
    Latencies,
    Records,
    Tally,
    Upper,
    Verdict,
    arguments,
    descriptors,
    in_words,
    is_quiet,
    make_server,
    run,
    table,
    until,
)

CLIENTS, EVERY, AFTERWARDS = 20, 0.25, 200
MOST_CPU = 0.05


@contextmanager
def no_more_descriptors() -> Iterator[None]:
    """Have no descriptor free inside the block: the limit is the lowest that is."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def soak(options: argparse.Namespace, folder: str, verdict: Verdict) -> None:
    """Serve and be served."""
    tally, fates, old_ones = Tally(), [], {}
    server = make_server(options.kind, folder, Upper, observers=[tally])
    come = int(options.seconds / EVERY)
    async with Clients.start() as there, Clients.start() as others, server.serving():
        where: dict[str, Any] = {"kind": options.kind, "address": server.server_address}
        await others.do("ask", **where, count=AFTERWARDS, pause=0)
        await until(lambda: is_quiet(server))
        before = descriptors()
        await there.do("keep", **where, count=CLIENTS, says="hello\n")
        with Records.kept() as records:
            with no_more_descriptors():
                began, cpu = time.monotonic(), time.process_time()
                await there.begin("ask_kept_for", seconds=options.seconds, pause=0.1)
                await others.begin("queue", **where, count=come, every=EVERY)
                await trio.sleep(options.seconds)
                share = (time.process_time() - cpu) / (time.monotonic() - began)
            ended = time.monotonic()
            fates = await others.result()
            recovery = time.monotonic() - ended
            old_ones = await there.result()
            afterwards = Latencies(await others.do("ask", **where, count=AFTERWARDS, pause=0))
        await there.do("leave")
        await until(lambda: is_quiet(server))
        now = server.statistics()
        after = descriptors()
    waits = [seconds for _, seconds in fates]
    ends = Counter(fate for fate, _ in fates)
    table(
        ("without a descriptor", f"{options.seconds:g} s"),
        ("CPU of the server", f"{100 * share:.2f} % (at most {100 * MOST_CPU:g} %)"),
        ("records", len(records.messages)),
        *[("", message) for message in records.messages],
        ("errors of accepts", now.accept_errors),
        ("answers to the clients that were there", old_ones["answers"]),
        ("the slowest of them", f"{1000 * old_ones['worst']:.1f} ms"),
        ("clients that came meanwhile", in_words(ends)),
        ("they waited", f"{min(waits):.3f} to {max(waits):.3f} s"),
        ("the last of them was done with after", f"{recovery:.3f} s"),
        ("afterwards: median / 99 % / worst", afterwards),
    )
    verdict.promise(share <= MOST_CPU, f"it does not spin: {share:.3f}")
    verdict.promise(len(records.messages) == 2, f"two records: {records.messages}")
    verdict.promise(old_ones["worst"] < 0.5, "the clients that are there are served")
    verdict.promise(ends.keys() <= {"served", "turned away"}, f"none is forgotten: {ends}")
    verdict.promise(recovery < 2, f"it recovers: {recovery:.3f} s")
    verdict.promise(before == after, f"descriptors: {before} before, {after} after")


def main() -> None:
    """Run it."""
    parser = arguments(__doc__)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--kind", choices=STREAM_KINDS, default="tcp")
    run(soak, parser.parse_args())


if __name__ == "__main__":
    main()
