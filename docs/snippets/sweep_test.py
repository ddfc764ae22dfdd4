import socketserver
from contextlib import suppress
from functools import partial

import pytest
import trio
import trioserver
from trioserver.testing import (
    Cancel,
    CtrlC,
    Finding,
    ResetClient,
    ShutDown,
    open_test_server,
    run_trial,
    sweep,
)


class Guests(trioserver.StreamRequestHandler):
    """Says how many are here."""

    async def handle(self):
        here = self.server.here
        here.add(self.client_address)
        await self.wfile.write(b"%d here\n" % len(here))
        await self.rfile.readline()
        here.remove(self.client_address)


async def visit(trial, handler, **options):
    server = trioserver.TCPServer(("127.0.0.1", 0), handler)
    server.here = set()
    trial.afterwards(lambda: [f"{who} is still here" for who in server.here])
    async with open_test_server(server, **options) as running:
        client = await running.connect()
        trial.arm(server=server, client=client)
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            if await client.receive_some() not in (b"1 here\n", b""):
                trial.complain("the number is wrong")
            await client.send_all(b"bye\n")


class CountedGuests(trioserver.StreamRequestHandler):
    async def handle(self):
        here = self.server.here
        here.add(self.client_address)
        try:
            await self.wfile.write(b"%d here\n" % len(here))
            await self.rfile.readline()
        finally:
            here.discard(self.client_address)


visit_counted = partial(visit, handler=CountedGuests)


def test_one_fault():
    sweep(visit_counted, faults=[Cancel(), CtrlC(), ShutDown(), ResetClient()])


def test_one_run():
    with pytest.raises(Finding, match="is still here"):
        run_trial(partial(visit, handler=Guests), Cancel(), at=[1], seed=0).check()


def test_two_faults():
    sweep(visit_counted, faults=[(ShutDown(), Cancel())], seeds=[0], every=5)


def empty_the_list(trial):
    trial.server.here.clear()


def test_own_fault():
    sweep(visit_counted, faults=[empty_the_list])


def test_on_a_socket():
    on_a_socket = partial(visit_counted, transport="tcp", autojump="wait")
    sweep(on_a_socket, faults=[Cancel(), ShutDown()], seeds=[0], jump_after=0.05)


class GuestInAThread(socketserver.StreamRequestHandler):
    def handle(self):
        self.wfile.write(b"welcome\n")
        self.rfile.readline()


async def visit_a_thread(trial):
    trial.varies = True
    server = trioserver.ThreadingTCPServer(("127.0.0.1", 0), GuestInAThread)
    async with open_test_server(server, transport="tcp", autojump="wait") as running:
        client = await running.connect()
        trial.arm(server=server)
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            await client.receive_some()
            await client.send_all(b"bye\n")


def test_in_threads():
    sweep(visit_a_thread, faults=[Cancel(), ShutDown()], seeds=[0], jump_after=0.05, every=3)
