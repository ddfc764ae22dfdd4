"""Serve many clients one after the other, and see that nothing is left of them.

    python tests/soak/connections.py                          # 100 000 polite ones
    python tests/soak/connections.py --misbehave              # one in three is not
    python tests/soak/connections.py --gc-off --kind unix
    python tests/soak/connections.py 20000 --kind udp --misbehave
    python tests/soak/connections.py 20000 --only vanish      # all of them reset
    python tests/soak/connections.py --threads                # handlers run in threads

Descriptors, tasks and threads are as before in the end, every client has one
record, and after the first 10 000 the process grows by less than 1 KiB for a
thousand clients (and Python's memory by less than 30 blocks).

How a client misbehaves is drawn from the seed and its number.
"""

from __future__ import annotations

import argparse

from _clients import BEHAVIOURS, is_stream
from _common import (
    KINDS,
    Growth,
    Tally,
    Upper,
    UpperInThread,
    Verdict,
    arguments,
    in_steps,
    in_words,
    make_server,
    run,
    table,
)

import trioserver

ENOUGH, WARM_UP = 50_000, 10_000


async def soak(options: argparse.Namespace, folder: str, verdict: Verdict) -> None:
    """Serve and be served."""
    tally = Tally()
    more = {} if is_stream(options.kind) else {"max_packet_size": 10_000}
    server = make_server(
        options.kind,
        folder,
        UpperInThread if options.threads else Upper,
        threads=options.threads,
        limits=trioserver.Limits(line=1000),
        timeouts=trioserver.Timeouts(idle=1, line=1.5, write=0.5, linger=0.5),
        observers=[tally],
        **more,
    )
    growth = Growth("clients", warm_up=WARM_UP, enough=ENOUGH)
    behaved, _ = await in_steps(
        growth,
        verdict,
        server,
        tally,
        count=options.count,
        do="visit",
        kind=options.kind,
        threads=options.threads,
        seed=options.seed,
        misbehave=options.misbehave,
        only=options.only,
    )
    table(("behaviour", in_words(behaved)), ("outcomes", tally))
    growth.judge(verdict)


def main() -> None:
    """Run it."""
    parser = arguments(__doc__)
    parser.add_argument("count", type=int, nargs="?", default=100_000, help="clients")
    parser.add_argument("--kind", choices=KINDS, default="tcp")
    parser.add_argument("--threads", action="store_true", help="handlers run in threads")
    parser.add_argument("--misbehave", action="store_true", help="one client in three")
    parser.add_argument("--only", choices=BEHAVIOURS, help="all clients do this")
    parser.add_argument("--seed", type=int, default=1, help="for the misbehaving ones")
    options = parser.parse_args()
    if options.threads and not is_stream(options.kind):
        parser.error("--threads needs --kind tcp or unix")
    run(soak, options)


if __name__ == "__main__":
    main()
