"""The ceiling for datagrams: a `DatagramProtocol` of asyncio in uvloop."""

from __future__ import annotations

import asyncio

import uvloop
from _protocols import serve_datagrams

with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(serve_datagrams())
