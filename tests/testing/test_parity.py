"""What a client meets in memory is what it meets on a socket: one table, over both."""

from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import pytest
import trio
from support import until

import trioserver
from trioserver import Timeouts
from trioserver.testing import Faults, MemoryServer, open_test_server

MUCH = 50_000_000
"""Bytes: more than any network holds on the way."""

BROKEN, CLOSED = trio.BrokenResourceError, trio.ClosedResourceError
NO_LINGER = Timeouts(linger=0)


@attrs.frozen
class Case:
    """What the server does, what its client does then, and what comes of each operation."""

    handler: Callable[..., Awaitable[None]]
    client: Callable[[Any, Any], Awaitable[list[Any]]]
    sees: list[Any]
    timeouts: Timeouts = attrs.field(factory=Timeouts)


async def met(operation):
    """What the operation returns, or the type of what it raises; never an OSError."""
    try:
        return await operation
    except Exception as error:  # noqa: BLE001  (that is the question)
        return "an OSError" if isinstance(error, OSError) else type(error)


async def says_hello(request, client_address, server):
    """Says so, and goes."""
    await request.sendall(b"hello")


async def echoes(request, client_address, server):
    """Says everything again."""
    async for data in request:
        await request.sendall(data)


async def resets(request, client_address, server):
    """Is rude."""
    request.reset()


async def greets_and_resets(request, client_address, server):
    """Is rude, after a word."""
    await request.sendall(b"hello")
    request.reset()


async def reads_little(request, client_address, server):
    """Leaves most of it."""
    await request.recv(1)


async def replies_early(request, client_address, server):
    """Leaves most of it, and has replied."""
    await request.recv(1)
    await request.sendall(b"reply")


async def gone(server):
    """Wait until the server is done with it, and a real network has told of that."""
    await until(lambda: any(server.statistics().outcomes.values()))
    await trio.sleep(0.02)


async def receives(client, server):
    """To the end, and beyond."""
    await gone(server)
    return [await met(client.receive_some()) for _ in range(3)]


async def sends_too_much(client, server):
    """More than is read, and then receives."""
    await client.send_all(b"x" * 1000)
    return await receives(client, server)


async def sends_for_ever(client, server):
    """As long as it is taken."""
    return [await met(client.send_all(bytes(MUCH)))]


async def receives_then_sends(client, server):
    """One of each."""
    await gone(server)
    return [await met(client.receive_some()), await met(client.send_all(b"x"))]


async def half_closes(client, server):
    """Ends its output, twice, and goes on."""
    await client.send_all(b"x")
    await client.send_eof()
    received = [await met(client.receive_some()) for _ in range(2)]
    return [*received, await met(client.send_eof()), await met(client.send_all(b"x"))]


async def closes_while_receiving(client, server):
    """In another task."""
    seen = []

    async def receive():
        seen.append(await met(client.receive_some()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(receive)
        await trio.sleep(0.05)
        await client.aclose()
    return [*seen, await met(client.send_all(b"")), await met(client.receive_some())]


async def takes_portions(client, server):
    """Of what is there."""
    await client.send_all(b"abcdef")
    first = await met(client.receive_some(2))
    nothing, rest = await met(client.send_all(b"")), await met(client.receive_some(100))
    return [first, nothing, rest, await met(client.receive_some(0))]


async def receives_twice_at_once(client, server):
    """In two tasks."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.receive_some)
        await trio.sleep(0.05)
        seen = await met(client.receive_some())
        nursery.cancel_scope.cancel()
    return [seen]


CASES = {
    "an end, again and again": Case(says_hello, receives, [b"hello", b"", b""]),
    "a reset": Case(resets, receives, [BROKEN, b"", b""]),
    "a reset after a word": Case(greets_and_resets, receives, [b"hello", BROKEN, b""]),
    "a reset, and a send": Case(resets, receives_then_sends, [BROKEN, BROKEN]),
    "input left": Case(reads_little, sends_too_much, [BROKEN, b"", b""], NO_LINGER),
    "input left after a reply": Case(
        replies_early, sends_too_much, [b"reply", BROKEN, b""], NO_LINGER
    ),
    "nobody reads": Case(reads_little, sends_for_ever, [BROKEN], NO_LINGER),
    "half a close": Case(echoes, half_closes, [b"x", b"", None, CLOSED]),
    "its own close": Case(echoes, closes_while_receiving, [CLOSED, CLOSED, CLOSED]),
    "portions": Case(echoes, takes_portions, [b"ab", None, b"cdef", ValueError]),
    "two tasks": Case(echoes, receives_twice_at_once, [trio.BusyResourceError]),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("faulty", [False, True], ids=["straight", "through a relay"])
@pytest.mark.parametrize("transport", ["memory", "tcp"])
async def test_client_meets_the_same(transport, faulty, case):
    """Bytes, ends and errors, on either kind of network, with and without a relay."""
    if transport == "memory" and not faulty:
        server = MemoryServer(("memory", 1), case.handler, timeouts=case.timeouts)
        with trio.fail_after(10):
            async with server.serving(grace=0), await server.connect() as client:
                assert await case.client(client, server) == case.sees
        return
    server = trioserver.TCPServer(("127.0.0.1", 0), case.handler, timeouts=case.timeouts)
    faults = Faults() if faulty else None
    with trio.fail_after(10):
        async with open_test_server(
            server, transport=transport, faults=faults, strict=False
        ) as running:
            assert await case.client(await running.connect(), server) == case.sees
