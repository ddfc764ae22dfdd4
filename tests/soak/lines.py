"""Serve one long connection with many small requests, and see that nothing piles up.

    python tests/soak/lines.py               # 1 000 000 lines
    python tests/soak/lines.py 200000 --kind unix

Each line is answered by a task of its own before the next one is sent. After
the first 50 000, the process grows by less than 0.1 KiB for a thousand lines.
"""

from __future__ import annotations

import argparse

import trio
from _common import STEPS, STREAM_KINDS, Clients, Growth, Verdict, arguments, make_server, run

import trioserver

ENOUGH, WARM_UP = 500_000, 50_000


class Answer(trioserver.StreamRequestHandler):
    """Answers each line in a task of its own."""

    async def handle(self) -> None:
        async for line in self.rfile:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self.wfile.write, line.upper())


async def soak(options: argparse.Namespace, folder: str, verdict: Verdict) -> None:
    """Serve and be served."""
    server = make_server(options.kind, folder, Answer)
    growth = Growth("lines", warm_up=WARM_UP, enough=ENOUGH, most_kib=0.1, most_blocks=1)
    step = options.count // STEPS
    async with Clients.start() as clients, server.serving():
        await clients.do(
            "keep", kind=options.kind, address=server.server_address, count=1, says="hello\n"
        )
        growth.sample(0)
        for first in range(0, step * STEPS, step):
            await clients.do("say_lines", first=first, count=step)
            growth.sample(first + step)
        now = server.statistics()
        verdict.promise(now.active == now.accepted == 1, f"it is the same connection: {now}")
        await clients.do("leave")
    growth.judge(verdict)


def main() -> None:
    """Run it."""
    parser = arguments(__doc__)
    parser.add_argument("count", type=int, nargs="?", default=1_000_000, help="lines")
    parser.add_argument("--kind", choices=STREAM_KINDS, default="tcp")
    run(soak, parser.parse_args())


if __name__ == "__main__":
    main()
