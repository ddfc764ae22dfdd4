"""trioserver's stream server, whose `wfile` is buffered."""

from __future__ import annotations

import trio
from _common import task
from _trioserver import serve
from trioserver_stream import Line

import trioserver


class Buffered(Line):
    """Answer each line, and send the answers when there is nothing more to read."""

    wbufsize = -1


if __name__ == "__main__":
    asked = task()
    kind = trioserver.UnixStreamServer if asked.unix else trioserver.TCPServer
    trio.run(serve, kind(asked.address, Buffered, request_queue_size=asked.backlog))
