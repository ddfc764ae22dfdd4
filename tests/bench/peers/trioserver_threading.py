"""trioserver's threading servers, with the handlers of the standard library's peer."""

from __future__ import annotations

import trio
from _common import task
from _handlers import handler
from _trioserver import serve

import trioserver

asked = task()
kind = trioserver.ThreadingUnixStreamServer if asked.unix else trioserver.ThreadingTCPServer
# The other peer has no bound; the most clients here are 1000.
server = kind(asked.address, handler(asked), request_queue_size=asked.backlog, max_threads=1000)
trio.run(serve, server)
