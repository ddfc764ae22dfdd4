import time

import trio
import trioserver
from trioserver.testing import expect, reply


class Upper(trioserver.StreamRequestHandler):
    async def handle(self):
        async for line in self.rfile:
            await self.wfile.write(line.upper())


async def fails(request, client_address, server):
    await request.recv()
    raise KeyError("cow")


async def tidies_up(request, client_address, server):
    try:
        await request.recv()
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(3)


class Breaks(trioserver.TCPServer):
    async def service_actions(self):
        raise RuntimeError("the disk is full")


async def test_error_that_nobody_notices(trio_server):
    server = await trio_server(fails)
    client = await server.connect()
    await client.send_all(b"hello\n")
    assert await client.receive_some() == b""


async def test_request_that_goes_on(trio_server, autojump_clock):
    server = await trio_server(tidies_up)
    await server.connect()


async def test_deadlock(trio_server):
    server = await trio_server(Upper, guard=1)
    client = await server.connect()
    await client.send_all(b"hello")
    await client.receive_some()


async def test_wrong_clock(trio_server, autojump_clock):
    await trio_server(Upper, transport="tcp")


async def test_step_that_is_not_met(scripted_server):
    server = await scripted_server(expect(b"hello *\n"), reply(b"hi\n"))
    client = await server.connect()
    await client.send_all(b"hullo\n")
    await client.receive_some()


async def test_server_that_breaks(trio_server):
    await trio_server(Breaks(("127.0.0.1", 0), Upper))
    await trio.sleep(60)


def test_that_is_not_async(trio_server):
    time.sleep(1)
