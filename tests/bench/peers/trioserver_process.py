"""trioserver's process servers, with the handlers of the standard library's peers."""

from __future__ import annotations

import trio
from _common import task
from _handlers import handler
from _trioserver import serve

import trioserver

if __name__ == "__main__":
    asked = task()
    kind = trioserver.ProcessUnixStreamServer if asked.unix else trioserver.ProcessTCPServer
    server = kind(asked.address, handler(asked), request_queue_size=asked.backlog, max_children=8)
    trio.run(serve, server)
