"""What trioserver must reach, and what it aims at: the rows of `table.py`."""

from __future__ import annotations

import dataclasses
from typing import Literal

from measuring import REFERENCE


@dataclasses.dataclass(frozen=True)
class Race:
    """Servers that are measured in the same rounds."""

    bare: str = REFERENCE
    """What ours are compared with."""
    rivals: tuple[str, ...] = (
        "asyncio_buffered",
        "gevent_stream",
        "asyncio_streams",
        "anyio_streams",
    )
    """What else people could use; the first two are fast, and do without the others."""
    ceiling: str = "uvloop_protocol"
    """What is not in Python, if anything."""
    scenario: str = ""
    """The load, if it is not named as the race is."""
    cores: str = ""
    """Those of both the server and the clients, if not one for each."""


STREAMS = Race()
DATAGRAMS = Race("udp_trio_inline", ("udp_stdlib", "udp_asyncio", "udp_gevent"), "udp_uvloop")

RACES = {
    "pingpong-c50": STREAMS,
    "pingpong-c500": STREAMS,
    "pingpong-c1": STREAMS,
    "pipeline-d32": STREAMS,
    "connect-c32": STREAMS,
    "bulk-c4": STREAMS,
    "udp-w64": DATAGRAMS,
    "udp-w1": DATAGRAMS,
    "idle": STREAMS,
    "threads": Race("stdlib_threading", ("trio_to_thread",), "", "connect-c32", "0,1"),
    "workers": Race(
        "trioserver_stream",
        ("asyncio_prefork", "asyncio_streams_prefork", "gevent_prefork"),
        "",
        "pingpong-c50",
        "0,1",
    ),
    "import": Race("trio", (), ""),
}


@dataclasses.dataclass(frozen=True)
class Goal:
    """How one server of ours is to compare in a race."""

    race: str
    ours: str
    must: float
    aim: float | str | None = None
    """A figure, or the peer whose figure of the same race it is."""
    figure: str = ""
    """What is compared, if it is not what the load is for."""
    by: Literal["ratio", "difference", "itself"] = "ratio"
    """What is made of ours and the bare one's; ``itself``: ours alone."""
    less: bool = False
    """Whether less is better."""


STREAM, BUFFERED, UDP = "trioserver_stream", "trioserver_buffered", "trioserver_udp_"

GOALS = {
    "pingpong-c50": Goal("pingpong-c50", STREAM, 1.65, 1.8),
    "pingpong-c50-buffered": Goal("pingpong-c50", BUFFERED, 1.4, STREAM),
    "pingpong-c500": Goal("pingpong-c500", STREAM, 1.95),
    "pingpong-c1": Goal("pingpong-c1", STREAM, 0.97, 1.05),
    "pipeline-d32": Goal("pipeline-d32", STREAM, 1.4, 1.5),
    "pipeline-d32-buffered": Goal("pipeline-d32", BUFFERED, 5, 8),
    "connect-c32": Goal("connect-c32", STREAM, 2.0, 2.3),
    "bulk-c4": Goal("bulk-c4", STREAM, 1.2, 1.4),
    "udp-w64-function": Goal("udp-w64", UDP + "function", 0.9, 1.2),
    "udp-w64-class": Goal("udp-w64", UDP + "class", 0.75, 1.0),
    "udp-w64-plain": Goal("udp-w64", UDP + "plain", 1.8, 2.5),
    "udp-w1-function": Goal("udp-w1", UDP + "function", 0.6, 0.8),
    "udp-w1-plain": Goal("udp-w1", UDP + "plain", 0.9, 1.0),
    "idle-KiB": Goal("idle", STREAM, 6.7, 5.6, "KiB", by="itself", less=True),
    "idle-teardown": Goal("idle", STREAM, 1.0, 0.5, "teardown ms", less=True),
    "threads-connect-c32": Goal("threads", "trioserver_threading", 0.75, "trio_to_thread"),
    "workers-pingpong-c50": Goal("workers", "trioserver_workers", 1.0),
    "import": Goal("import", "trioserver", 0.03, None, "s", by="difference", less=True),
    "import-server": Goal(
        "import", "trioserver:TCPServer", 0.06, 0.03, "s", by="difference", less=True
    ),
}
