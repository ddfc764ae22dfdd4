"""Programs of servers in memory, run in this very process, each with a client from the start."""

import signal

import trio

import trioserver
from trioserver.testing import MemoryServer

from .pipes import does

ADDRESS = ("memory", 1)
IMPATIENT = trioserver.Timeouts(linger=0)


class Visited(MemoryServer):
    """One that has a client as soon as it listens."""

    async def server_activate(self):
        await super().server_activate()
        self.listener.connect_now()


async def until_draining(server):
    """Return when the server drains."""
    while not server.draining:
        await trio.lowlevel.checkpoint()


class Deeds(trioserver.BaseRequestHandler):
    """What handlers of such a program do."""

    async def signals(self, number):
        signal.raise_signal(number)
        await until_draining(self.server)


def visited(handler, kind=Visited, deeds=Deeds, **fields):
    """A server with a client, and a handler, or one that does these steps."""
    handler = does(handler, deeds) if isinstance(handler, str) else handler
    return kind(ADDRESS, handler, **{"timeouts": IMPATIENT, **fields})


def on_visit(act, kind=Visited, **fields):
    """A server with a client; when that is there, the program does ``await act(server)``."""

    async def handle(request, client_address, server):
        await act(server)

    return visited(handle, kind, **fields)


def order(name):
    """Send this process a signal, as somebody does from outside."""
    signal.raise_signal(signal.Signals[name])
