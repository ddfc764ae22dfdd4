"""trioserver's stream server by TLS."""

from __future__ import annotations

from functools import partial

import trio
from _common import task
from _trioserver import serve
from trioserver_stream import Line

import trioserver

asked = task()
context = partial(trioserver.server_context, asked.certificate, asked.key)
trio.run(
    serve,
    trioserver.TCPServer(
        asked.address, Line, request_queue_size=asked.backlog, ssl_context=context
    ),
)
