"""What a client meets in memory is what it meets on a socket: one table, over both."""

import pytest
import trio
from support import until
from support.pipes import does, play
from support.scenes import table
from support.speaking import echo

import trioserver
from trioserver import Timeouts
from trioserver.testing import Faults, MemoryServer, open_test_server


class Visit:
    """A client, and what it does that needs more than one call."""

    def __init__(self, client, server):
        self.client, self.server = client, server

    async def is_served(self):
        """Wait until the server is done with it, and a real network has told of that."""
        await until(lambda: any(self.server.statistics().outcomes.values()))
        await trio.sleep(0.02)

    async def sends_much(self):
        """More than any network holds on the way."""
        await self.client.send_all(bytes(50_000_000))

    async def beside_a_receive(self, name):
        """Do that while another task receives; raise what either meets."""
        errors = []

        async def note(operation):
            try:
                await operation()
            except Exception as error:  # noqa: BLE001  (that is the question)
                errors.append(error)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(note, self.client.receive_some)
            await trio.sleep(0.05)
            await note(getattr(self.client, name))
            nursery.cancel_scope.cancel()
        raise errors[0]


ENDS = "receive_some -> b''; receive_some -> b''"
BREAKS = f"receive_some -> BrokenResourceError; {ENDS}"
LEFT = "send_all b'too much'; is_served; "
AGAIN = "receive_some -> BrokenResourceError; send_all b'x' -> BrokenResourceError"
HALF = "send_all b'x'; send_eof; receive_some -> b'x'; receive_some -> b''; send_eof -> None; "
CLOSES = "beside_a_receive 'aclose' -> ClosedResourceError; send_all b'' -> ClosedResourceError; "
PORTIONS = "send_all b'abcdef'; receive_some 2 -> b'ab'; send_all b'' -> None; "
BUSY = "beside_a_receive 'receive_some' -> BusyResourceError"
hello, resets, greets = does("sendall b'hello'"), does("reset"), does("sendall b'hello'; reset")
reads_little, replies = does("recv 1"), does("recv 1; sendall b'reply'")


@table(
    ("handler", "steps"),
    {
        "an end, again and again": (hello, f"is_served; receive_some -> b'hello'; {ENDS}"),
        "a reset": (resets, f"is_served; {BREAKS}"),
        "a reset after a word": (greets, f"is_served; receive_some -> b'hello'; {BREAKS}"),
        "a reset, and a send": (resets, f"is_served; {AGAIN}"),
        "input left": (reads_little, LEFT + BREAKS),
        "input left after a reply": (replies, f"{LEFT}receive_some -> b'reply'; {BREAKS}"),
        "nobody reads": (reads_little, "sends_much -> BrokenResourceError"),
        "half a close": (echo, f"{HALF}send_all b'x' -> ClosedResourceError"),
        "its own close": (echo, f"{CLOSES}receive_some -> ClosedResourceError"),
        "portions": (echo, PORTIONS + "receive_some 100 -> b'cdef'; receive_some 0 -> ValueError"),
        "two tasks": (echo, BUSY),
    },
)
@pytest.mark.parametrize("faulty", [False, True], ids=["straight", "through a relay"])
@pytest.mark.parametrize("transport", ["memory", "tcp"])
async def test_client_meets_the_same(transport, faulty, handler, steps):
    """Bytes, ends and errors, on either kind of network, with and without a relay."""
    straight = transport == "memory" and not faulty
    kind = MemoryServer if straight else trioserver.TCPServer
    server = kind(("127.0.0.1", 0), handler, timeouts=Timeouts(linger=0))
    with trio.fail_after(10):
        if straight:
            async with server.serving(grace=0), await server.connect() as client:
                await play(steps, Visit(client, server), client)
            return
        faults = Faults() if faulty else None
        wrong = {"transport": transport, "faults": faults, "strict": False}
        async with open_test_server(server, **wrong) as running:
            client = await running.connect()
            await play(steps, Visit(client, server), client)
