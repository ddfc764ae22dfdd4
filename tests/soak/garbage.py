"""Serve garbage, and see that it harms nobody.

    python tests/soak/garbage.py                     # 100 000 requests of 0-64 kB
    python tests/soak/garbage.py 20000 --kind udp

Random bytes, broken lines, delimiters in any order and zeros, in one piece or
two, ended in order or by a reset. The handler reads them in every way there is;
which, is up to the first byte.

Whatever the handler raises goes to ``handle_error`` and nowhere else: no log
record, nothing unraisable, no end of the server. Descriptors, tasks and threads
are as before in the end, every request has one record, and after the first
50 000 the memory does not grow. (Before, it does: where many large datagrams
come at once, it grows to what the largest crowd so far has needed.)

What a request is like is drawn from the seed and its number.
"""

from __future__ import annotations

import argparse
import json

from _common import (
    KINDS,
    Growth,
    Records,
    Tally,
    Verdict,
    arguments,
    in_steps,
    in_words,
    make_server,
    run,
    table,
)

import trioserver

ENOUGH, WARM_UP, LARGEST = 50_000, 50_000, 64_000
OF_THE_HANDLER = {"ValueError", "UnicodeDecodeError", "JSONDecodeError", "IndexError"}


class Reader(trioserver.StreamRequestHandler):
    """Reads what there is, in one of many ways, and makes what it can of it."""

    async def handle(self) -> None:
        for first in await self.rfile.read(1):
            ways = (self.lines, self.frames, self.delimited, self.all, self.bits, self.peeks)
            await ways[first % len(ways)]()

    async def lines(self) -> None:
        async for line in self.rfile:
            command, *_ = line.decode("ascii").split()
            await self.wfile.write(command.encode() + b"\n")

    async def frames(self) -> None:
        while await self.rfile.more():
            size = int.from_bytes(await self.rfile.readexactly(2), "big")
            await self.wfile.write(await self.rfile.readexactly(size))

    async def delimited(self) -> None:
        while await self.rfile.more():
            int(await self.rfile.readuntil(b"\r\n"))

    async def all(self) -> None:
        json.loads(await self.rfile.read())

    async def bits(self) -> None:
        while data := await self.rfile.read1(100):
            if data[0] > 250:
                return  # and leaves the rest unread
            await self.wfile.write(data)

    async def peeks(self) -> None:
        while ahead := await self.rfile.peek(10):
            await self.rfile.readexactly(len(ahead))
        await self.wfile.writelines(await self.rfile.readlines())


async def soak(options: argparse.Namespace, folder: str, verdict: Verdict) -> None:
    """Serve and be served."""
    tally = Tally()
    server = make_server(
        options.kind,
        folder,
        Reader,
        timeouts=trioserver.Timeouts(idle=5, line=5, write=5, linger=1),
        observers=[tally],
    )
    growth = Growth("requests", warm_up=WARM_UP, enough=ENOUGH)
    with Records.kept() as records:
        totals, statistics = await in_steps(
            growth,
            verdict,
            server,
            tally,
            count=options.count,
            do="rubbish",
            kind=options.kind,
            seed=options.seed,
            most=LARGEST,
        )
    table(
        ("bytes sent", f"{totals['sent']:,}"),
        ("bytes received", f"{totals['received']:,}"),
        ("dropped by the kernel", statistics.dropped),
        ("outcomes", tally),
        ("errors of the handler", in_words(server.handler_errors)),
    )
    growth.judge(verdict)
    foreign = server.handler_errors.keys() - OF_THE_HANDLER
    verdict.promise(not foreign, f"the handler meets no errors but its own: {foreign}")
    failed = server.handler_errors.total()
    verdict.promise(tally.outcomes["failed"] == failed, f"{failed} errors, {tally}")
    verdict.promise(not records.messages, f"nothing is logged: {records.messages[:5]}")


def main() -> None:
    """Run it."""
    parser = arguments(__doc__)
    parser.add_argument("count", type=int, nargs="?", default=100_000, help="requests")
    parser.add_argument("--kind", choices=KINDS, default="tcp")
    parser.add_argument("--seed", type=int, default=1)
    run(soak, parser.parse_args())


if __name__ == "__main__":
    main()
