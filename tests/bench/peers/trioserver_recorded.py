"""The server of `trioserver_stream`, with a recorder of tasks and requests."""

from __future__ import annotations

import trio
from _common import task
from _trioserver import serve
from trioserver_stream import Line

import trioserver
from trioserver.monitoring import Recorder


async def recorded(*, scopes: bool = False) -> None:
    """Serve until SIGTERM, in a recorder's block."""
    asked = task()
    kind = trioserver.UnixStreamServer if asked.unix else trioserver.TCPServer
    limits = trioserver.Limits(requests=20_000)
    recorder = Recorder(scopes=scopes)
    server = kind(
        asked.address,
        Line,
        request_queue_size=asked.backlog,
        limits=limits,
        observers=(recorder,),
    )
    with recorder:
        await serve(server)
    if recorder.failures:
        raise RuntimeError(f"{recorder.failures} events were not recorded")


if __name__ == "__main__":
    trio.run(recorded)
